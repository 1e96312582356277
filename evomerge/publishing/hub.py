"""The hub, as far as pushing needs it; errors of the network and of the service become ours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, final

from evomerge.errors import ConfigError, without_secrets
from evomerge.publishing.bundle import Bundle


def _hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises; its HTTP library has changed its name, so its base is asked for instead."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    network = (kind for kind in HfHubHTTPError.__mro__ if kind.__name__ in {"HTTPError", "RequestException"})
    return (HfHubHTTPError, HFValidationError, ConnectionError, RuntimeError, *network)


_NO_CONNECTION: Final = frozenset(
    {"TransportError", "ConnectionError", "Timeout", "OfflineModeIsEnabled", "gaierror", "TimeoutError"}
)
"""Bases of what is raised where nothing answers, by name: httpx's, requests', the system's."""


def _is_refusal(error: Exception) -> bool:
    """Whether the hub has answered at all."""
    return not any(kind.__name__ in _NO_CONNECTION for kind in type(error).__mro__)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub's own lines about every attempt off the terminal: the error that ends them says it once."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _told(repo: str, endpoint: str) -> Iterator[None]:
    try:
        with _quiet():
            yield
    except _hub_errors() as error:
        if not _is_refusal(error):
            raise ConfigError(
                "The hub cannot be reached.",
                got=f"{repo}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
                allowed=f"a hub that answers at {without_secrets(endpoint)}",
                fix="check the network, its proxy, and HF_ENDPOINT and HF_HUB_OFFLINE if they are set; "
                "nothing was published.",
            ) from error
        raise ConfigError(
            "The hub did not take it.",
            got=f"{repo}: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}",
            allowed="a repository OWNER/NAME that your token may write to",
            fix="`hf auth login` with a token that may write, or correct --to; nothing was published.",
        ) from error


@final
class Hub:
    """One repository of models.

    Args:
        repo: `OWNER/NAME`.
        endpoint: of the hub; huggingface_hub's own if None.
    """

    def __init__(self, repo: str, endpoint: str | None = None) -> None:
        from huggingface_hub import HfApi

        self._repo = repo
        self._api: Any = HfApi(endpoint=endpoint, library_name="evomerge")

    def files(self) -> tuple[str, ...] | None:
        """What the repository holds; None when there is none.

        Raises:
            ConfigError: when the hub cannot be reached or refuses the token.
        """
        from huggingface_hub.errors import RepositoryNotFoundError

        with _told(self._repo, str(self._api.endpoint)):
            try:
                return tuple(self._api.list_repo_files(self._repo))
            except RepositoryNotFoundError:
                return None

    def push(self, bundle: Bundle, message: str, *, create: bool, public: bool) -> str:
        """Send everything in one commit and return its address.

        Args:
            bundle: what is sent.
            message: of the commit.
            create: make the repository first.
            public: of a new repository: whether everybody may read it.

        Raises:
            ConfigError: when the hub cannot be reached or refuses it; there is then no commit, at most an empty
                repository.
        """
        from huggingface_hub import CommitOperationAdd

        sent: dict[str, Any] = {**bundle.files, **{name: text.encode() for name, text in bundle.texts.items()}}
        operations = [
            CommitOperationAdd(
                path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content)
            )
            for name, content in sent.items()
        ]
        with _told(self._repo, str(self._api.endpoint)):
            if create:
                self._api.create_repo(self._repo, private=not public)
            return str(self._api.create_commit(self._repo, operations, commit_message=message).commit_url)
