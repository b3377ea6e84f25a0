"""Copies of model files under another chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf

import safex

DATA = Path(safex.__file__).parent / "data"
KEY = "tokenizer.chat_template"


def with_template(source: Path, target: Path, edit: Callable[[str], str]) -> Path:
    """Write a copy of ``source`` whose chat template is ``edit`` of its own."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = edit(str(field.contents())) if name == KEY else field.contents()
        sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], sub_type)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def opening_a_block(target: Path, model: str = "demo", block: str = "<think>\\n") -> Path:
    """A demo model whose template ends with an open reasoning block, as those of hybrid-thinking models may."""
    return with_template(DATA / f"{model}.gguf", target, lambda template: f"{template}{{{{ '{block}' }}}}")
