"""Why a model gave no answer, or only a part of one: one clear line each, and what to do about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from backends.errors import GpuboxError
from backends.snapshots import Connection

if TYPE_CHECKING:
    from backends.chat_answer import Answer

_CONTEXT = re.compile(r"(?:maximum (?:context|model) length (?:is|of) |max_model_len=)(\d+)")
_ASKED_FOR = re.compile(r"requested (\d+) output tokens|max_tokens=(\d+)")
_PROMPT = re.compile(r"prompt contains (?:at least )?(\d+)|prompt \(length (\d+)\)|\((\d+) in the messages")
_NO_TEMPLATE = re.compile(r"chat[ _]template", re.IGNORECASE)
_NO_IMAGES = re.compile(
    r"not a multimodal model|At most 0 image|image input is not supported|does not support image",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(r"Unsupported fields in the request: \{(.*?)\}")
_SEE_LOG = "see its log (gpubox logs)"


class ChatError(GpuboxError):
    """The engine did not answer, or refused to."""

    code = "chat"


class AnswerCutError(ChatError):
    """The engine broke off in the middle of an answer; `answer` is what had arrived."""

    code = "answer-cut"

    def __init__(self, message: str, hint: str, answer: Answer) -> None:
        super().__init__(message, hint)
        self.answer = answer


def refusal(error: Exception, connection: Connection, url: str) -> ChatError:
    """Say in one line why there is no answer at all; `url` is where it was asked."""
    import openai

    text = told(error)
    if isinstance(error, openai.APITimeoutError):
        return ChatError(f"{url} did not answer in time", f"is it overloaded? {_SEE_LOG}")
    if isinstance(error, openai.APIConnectionError):
        if type(error.__cause__).__name__ == "ConnectError":
            return ChatError(f"nothing answers at {url}", "is the server running? (gpubox status)")
        return ChatError("the engine closed the connection before it answered", _SEE_LOG)
    if isinstance(error, EOFError):
        return ChatError("the engine ended its answer before it began", _SEE_LOG)
    if not isinstance(error, openai.APIStatusError):
        return ChatError(f"the engine gave no answer that can be read: {text}", _SEE_LOG)
    return _status(error.status_code, error.request.url.path, text, connection)


def _status(status: int, path: str, text: str, connection: Connection) -> ChatError:
    if status in (401, 403):
        return ChatError("the engine refuses the API key", "the profile's api_key must be the one it was started with")
    if status == 404:
        if connection.served_name in text:
            return ChatError(f"the engine serves no model named {connection.served_name}", f"it says: {text}")
        return ChatError(
            f"the engine cannot be asked this way (HTTP 404 at {path})",
            "is the model of another kind: chat, completion, embedding?",
        )
    if match := _CONTEXT.search(text):
        return _too_long(int(match[1]), text)
    if _NO_TEMPLATE.search(text):
        return ChatError("the model has no chat template", "set chat_template among the profile's engine arguments")
    if match := _UNSUPPORTED.search(text):
        names = match[1].replace("'", "")
        return ChatError(f"the engine does not take {names}", "leave it to the model: /set NAME=")
    if _NO_IMAGES.search(text):
        return ChatError(f"{connection.served_name} takes no pictures", "ask without it, or ask a vision model")
    return ChatError(f"the engine refuses (HTTP {status}): {text or 'it does not say why'}", _SEE_LOG)


def _too_long(context: int, text: str) -> ChatError:
    """Say what does not fit: the answer that was asked for, or already the conversation."""
    asked, prompt = _first(_ASKED_FOR, text), _first(_PROMPT, text)
    message = f"this does not fit into the model's context of {context} tokens"
    if asked is not None and asked > 1 and (prompt is None or prompt < context):
        room = f", and at most {context - prompt} are left" if prompt is not None else ""
        return ChatError(message, f"{asked} tokens of answer were asked for{room}: lower max_tokens")
    return ChatError(message, "begin a new chat, edit an earlier question, or raise max_model_len in the profile")


def _first(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    return next((int(group) for group in match.groups() if group), None) if match else None


def cut_off(error: Exception, answer: Answer) -> AnswerCutError:
    """Say in one line why an answer broke off."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        message = "the engine fell silent in the middle of its answer"
    elif isinstance(error, openai.APIError) and not isinstance(error, openai.APIConnectionError):
        message = f"the engine broke off its answer: {told(error)}"
    else:
        message = "the engine went away in the middle of its answer"
    return AnswerCutError(message, f"what it wrote is kept; {_SEE_LOG}", answer)


def told(error: Exception) -> str:
    """Return the engine's own words in one line of bounded length; empty where it sent a web page."""
    body = getattr(error, "body", None)
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body
    text = " ".join(str(body or error).split())
    if text.startswith("<"):
        return ""
    return text if len(text) <= 300 else text[:299] + "…"
