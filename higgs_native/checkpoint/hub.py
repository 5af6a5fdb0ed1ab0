"""Checkpoints on the Hub: fetched into its cache, with an error in place of an endless wait."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict, Unpack

from higgs_native.checkpoint.other_kinds import kind_of_files
from higgs_native.errors import CheckpointError, ParameterError, one_line, short_repr
from higgs_native.utils.progress import shows_notices


HUB_TIMEOUT = 10.0
"""Seconds without an answer after which a request to the Hub fails. The client asks up to 7 times for a file."""
_LOGGER = logging.getLogger(__name__)
_FETCHED = ("*.json", "*.safetensors", "*.txt", "*.pth", "*.tsv.xz")


class HubOptions(TypedDict, total=False):
    """How a Hub name is fetched; a folder needs none of them.

    Attributes:
        revision: a branch, a tag or a commit; None: the main branch.
        token: of your account; None: that of `HF_TOKEN` or `hf auth login`. False: none.
        cache_dir: the folder of the cache; None: that of the Hub's client.
        local_files_only: use the cache alone.
        force_download: fetch what the cache has, too.
    """

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool


def check_hub_options(options: Mapping[str, Any]) -> None:
    """Raise ParameterError if one of `options` is none of `HubOptions`."""
    known = HubOptions.__annotations__
    if unknown := options.keys() - known:
        raise ParameterError(f"options must be of {', '.join(known)}, got {short_repr(min(unknown))}")


def hub_options(options: Mapping[str, Any]) -> HubOptions:
    """Return those of a call's options that are `HubOptions`."""
    chosen: Any = {name: options[name] for name in HubOptions.__annotations__ if name in options}
    return chosen


def fetch_snapshot(name: str, kind: str, **options: Unpack[HubOptions]) -> Path:
    """Return the folder of a repository in the Hub's cache, after fetching what it lacks.

    Args:
        name: `owner/name`.
        kind: the name of the argument in error messages.
        options: see `HubOptions`.

    Raises:
        CheckpointError: the Hub has no such repository or revision, refuses access, or can't be reached, and the cache
            has no copy.
    """
    # Imported here: the Hub's client is slow to import, and local folders do not need it.
    from huggingface_hub import snapshot_download

    _LOGGER.info("%s: asking the Hub", one_line(name))
    try:
        with no_endless_requests(), _bars_where_wanted():
            folder = Path(snapshot_download(name, allow_patterns=list(_FETCHED), **options))
    except Exception as error:  # of any type: the client passes on those of HTTP, and of answers that aren't the Hub's
        raise CheckpointError(
            f"{kind} must be a folder or a Hub name, got {name}, which could not be fetched: "
            f"{reason_of(error, options.get('revision'))}"
        ) from None
    has_weights = any(path.suffix in (".safetensors", ".pth") for path in folder.glob("*"))
    if not has_weights and (other := _kind_of_repository(name, **options)):
        raise CheckpointError(f"{kind} must be a folder or a Hub name, got {name}, which holds {other}")
    return folder


def _kind_of_repository(
    name: str, revision: str | None = None, token: str | bool | None = None, local_files_only: bool = False, **_: Any
) -> str | None:
    """Tell the kind of a repository without weights that can be read, by its other files."""
    if local_files_only:
        return None
    from huggingface_hub import HfApi

    try:
        repository = HfApi(token=token).model_info(name, revision=revision, timeout=HUB_TIMEOUT)
        return kind_of_files(file.rfilename for file in repository.siblings or ())
    except Exception:  # as above; what the fetched folder lacks shows when it is read
        return None


@contextmanager
def no_endless_requests() -> Iterator[None]:
    """Limit the Hub client's requests to `HUB_TIMEOUT`: the first one waits for ever, those of files for a minute."""
    from huggingface_hub.utils import get_session

    def limit(request: Any) -> None:
        limits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            part: HUB_TIMEOUT if seconds is None else min(seconds, HUB_TIMEOUT) for part, seconds in limits.items()
        }

    hooks = get_session().event_hooks["request"]
    hooks.append(limit)
    try:
        yield
    finally:
        hooks.remove(limit)


@contextmanager
def _bars_where_wanted() -> Iterator[None]:
    """Keep the Hub client's bars hidden where those of this package are."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if shows_notices() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def reason_of(error: Exception, revision: str | None = None) -> str:
    """Return why the Hub's client failed, in one line."""
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the request that failed before the cache was searched
    match error:
        case GatedRepoError():  # a RepositoryNotFoundError, too
            words = "its owner must grant access, and the environment variable HF_TOKEN must hold your token"
        case RepositoryNotFoundError():
            words = "the Hub has no such repository, or it is private and HF_TOKEN must hold a token with access"
        case RevisionNotFoundError():
            words = f"the repository has no revision {revision}"
        case _ if type(error).__name__.endswith("Timeout"):
            return f"the Hub did not answer within {HUB_TIMEOUT:g} seconds"
        case _:
            return " ".join(str(error).split()) or type(error).__name__
    said = getattr(error, "server_message", None)
    return f"{words} (HTTP {error.response.status_code}{f': {said}' if said else ''})"
