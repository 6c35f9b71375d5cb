"""Parses ``multipart/form-data`` with the standard library's email parser."""

import email
import email.message
import email.policy
from dataclasses import dataclass, field

from service.sandbox.refusals import Refusal


@dataclass(slots=True, kw_only=True)
class Form:
    """The texts and files of a form by field name."""

    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)

    def file(self, name: str) -> bytes:
        """Return the only file of a field.

        :raises Refusal: when the field does not have exactly one file.
        """
        files = self.files.get(name, [])
        if len(files) != 1:
            raise Refusal(400, {"error": f"{name}: expected one file, got {len(files)}"})
        return files[0]


def parse(body: bytes, content_type: str) -> Form:
    """Parse the fields of a form.

    :raises Refusal: 400 when the body is not a valid form.
    """
    head = b"Content-Type: " + content_type.encode(errors="replace") + b"\r\n\r\n"
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    if message.get_content_type() != "multipart/form-data" or not message.is_multipart():
        raise Refusal(400, {"error": "Content-Type must be multipart/form-data"})
    if message.defects:
        raise Refusal(
            400, {"error": "The form could not be parsed", "details": "Malformed multipart"}
        )
    form = Form()
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if not isinstance(name, str) or not isinstance(content, bytes):
            raise Refusal(400, {"error": "A part of the form has no name"})
        if part.get_filename() is None:
            form.texts[name] = content.decode(errors="replace")
        else:
            form.files.setdefault(name, []).append(content)
    return form
