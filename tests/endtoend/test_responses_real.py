"""The whole suite of the Responses API, on a real checkpoint: only `endpoint` differs, see conftest.py."""

from tests.gateway.test_responses_conformance import *  # noqa: F403 - every test, and the fixtures they ask for
