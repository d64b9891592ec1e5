"""Two small tasks for lm_eval, of our own, so that no data comes from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Germany", "Berlin"), ("Spain", "Madrid")]
CHOICES: dict[str, Any] = {
    "task": "capitals_by_choice",
    "output_type": "multiple_choice",
    "doc_to_text": "The capital of {{country}} is",
    "doc_to_choice": [city for _, city in CAPITALS],
    "doc_to_target": "{{city}}",
    "metric_list": [{"metric": "acc"}],
}
WORDS: dict[str, Any] = {
    "task": "capitals_in_words",
    "output_type": "generate_until",
    "doc_to_text": "What is the capital of {{country}}?",
    "doc_to_target": "{{city}}",
    "generation_kwargs": {"until": [".", "\n"], "max_gen_toks": 16, "do_sample": False},
    "filter_list": [{"name": "city", "filter": [{"function": "regex", "regex_pattern": "(Paris|Rome|Berlin|Madrid)"}]}],
    "metric_list": [{"metric": "exact_match"}],
}


def write_tasks(folder: Path) -> None:
    """Both tasks and their data, as lm_eval's `--include_path` finds them (YAML reads JSON)."""
    data = folder / "capitals.jsonl"
    data.write_text("".join(json.dumps({"country": country, "city": city}) + "\n" for country, city in CAPITALS))
    for task in (CHOICES, WORDS):
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test"}
        (folder / f"{task['task']}.yaml").write_text(json.dumps({**task, **where}))
