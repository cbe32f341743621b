"""A repository whose models take one thread each."""

from __future__ import annotations

import shutil
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig


def with_one_thread(repository: Path, copy: Path) -> Path:
    """A copy of a repository whose models have one instance of one thread each."""
    shutil.copytree(repository, copy)
    for path in copy.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
        for name in ("intra_op_thread_count", "inter_op_thread_count"):
            config.parameters[name].string_value = "1"
        del config.instance_group[1:]
        config.instance_group[0].count = 1
        path.write_text(text_format.MessageToString(config), encoding="utf-8")
    return copy
