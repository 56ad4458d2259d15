"""Check that every text field of a model is text: protobuf hands out bytes where UTF-8 is broken."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]

from ..errors import ModelError

_TENSOR_TEXTS = ("name", "doc_string")


def check_text(proto: onnx.ModelProto) -> None:
    """Refuse names and other texts that are not UTF-8; tensor data is not looked at.

    Raises:
        ModelError: `bad-name`.
    """
    pending: list[Message] = [proto]
    while pending:
        message = pending.pop()
        if isinstance(message, onnx.TensorProto):
            for key in _TENSOR_TEXTS:
                _check(key, [getattr(message, key)])
            pending.extend(message.external_data)
            continue
        for field, content in message.ListFields():
            many = [content] if isinstance(content, Message | str | bytes | int | float) else content
            if field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
                pending.extend(many)
            elif field.type == FieldDescriptor.TYPE_STRING:
                _check(field.name, many)


def _check(key: str, texts: Iterable[object]) -> None:
    for text in texts:
        if not isinstance(text, str):
            finding = f"the text {text!r} (field {key}) is not UTF-8"
            raise ModelError("bad-name", finding, "the file is damaged; export it again")
