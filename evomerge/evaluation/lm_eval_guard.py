"""Calls into lm-eval and datasets, guarded: no noise, no needless network, no code in templates, errors of ours."""

from __future__ import annotations

import io
import logging
import os
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Final
from urllib.parse import urlsplit

import datasets
import huggingface_hub
import jinja2
import lm_eval.utils
import yaml
from datasets.exceptions import DatasetsError

from evomerge.errors import EvaluationError
from evomerge.evaluation.task_templates import LimitedTemplate, TaskEnvironment

BUILD_ERRORS: Final = (
    ArithmeticError,
    MemoryError,
    SyntaxError,
    StopIteration,
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    IndexError,
    AssertionError,
    RuntimeError,
    re.error,
    yaml.YAMLError,
    jinja2.TemplateError,
    DatasetsError,
)
"""What lm-eval and datasets raise for a broken or unreachable task."""


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps lm-eval's and datasets' bars, warnings and log lines off the terminal."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub", "httpx")]
    levels = [logger.level for logger in loggers]
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _hub_answers() -> bool:
    """Whether the hub's host takes a connection; a proxy is believed in."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urlsplit(huggingface_hub.constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname or "", address.port or 443), timeout=3):
            return True
    except OSError:
        return False


@contextmanager
def without_waiting(needs_hub: bool) -> Iterator[None]:
    """Local data asks no network; hub data comes from the cache alone when the hub cannot be reached.

    Otherwise datasets reports every load of a local file to the hub, and retries an unreachable hub for half a minute.
    """
    hub, data = huggingface_hub.constants, datasets.config
    before = hub.HF_HUB_OFFLINE, data.HF_HUB_OFFLINE, data.HF_UPDATE_DOWNLOAD_COUNTS
    if needs_hub and not (hub.HF_HUB_OFFLINE or data.HF_HUB_OFFLINE) and not _hub_answers():
        hub.HF_HUB_OFFLINE = data.HF_HUB_OFFLINE = True
    data.HF_UPDATE_DOWNLOAD_COUNTS = needs_hub and data.HF_UPDATE_DOWNLOAD_COUNTS
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, data.HF_HUB_OFFLINE, data.HF_UPDATE_DOWNLOAD_COUNTS = before


class _Templates:
    """Stands in for lm-eval's Jinja environment: compiles each template once (lm-eval compiles it for every document).

    Args:
        environment: renders the templates.
    """

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment
        self.filters = environment.filters
        self._compiled: dict[str, jinja2.Template | LimitedTemplate] = {}

    def from_string(self, source: str) -> jinja2.Template | LimitedTemplate:
        """The template of a text."""
        if source not in self._compiled:
            known = self._environment
            self._compiled[source] = (
                LimitedTemplate(known, source) if isinstance(known, TaskEnvironment) else known.from_string(source)
            )
        return self._compiled[source]


@contextmanager
def templates(trusted: bool) -> Iterator[None]:
    """Renders task templates quickly; untrusted ones in a sandbox with limits: a template is text, not code."""
    free = lm_eval.utils.env
    lm_eval.utils.env = _Templates(free if trusted else TaskEnvironment(free.filters))
    try:
        yield
    finally:
        lm_eval.utils.env = free


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turns what lm-eval and datasets raise for task `name` into an EvaluationError."""
    try:
        yield
    except EvaluationError:
        raise
    except BUILD_ERRORS as error:
        lines = str(error).strip().splitlines()
        raise EvaluationError(
            f"Task {name!r} cannot be built.",
            got=f"{type(error).__name__}: {lines[0] if lines else ''}",
            allowed="a task whose data set is on this machine or can be downloaded, and whose fields exist in it",
            fix="correct the task's file; without a network, download its data set first.",
        ) from error
