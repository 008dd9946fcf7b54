#!/usr/bin/env python
"""Looks for bytes that break what `reading.py` says of the reader of JSON files, with atheris:
`make fuzz`.

Bytes that break something are written to a file below runs/, and named; those that reached new code
are kept in runs/fuzz. What taught it most stands in corpus/, which an ordinary test replays. To add
to it: PATH=.venv-fuzz/bin:$PATH PYTHONPATH=src tests/helpers/fuzz_jsonl.py -set_cover_merge=1
-max_len=400 tests/corpus runs/fuzz
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["winnow.data.jsonl", "json.decoder"]):
    from reading import examine

with tempfile.TemporaryDirectory() as folder:
    atheris.Setup(sys.argv, lambda content: examine(content, Path(folder)))
    atheris.Fuzz()
