"""The whole conformance suite of the gateway, on a real checkpoint: only `endpoint` differs, see conftest.py."""

from tests.gateway.test_openai_conformance import *  # noqa: F403 - every test, and the fixtures they ask for
