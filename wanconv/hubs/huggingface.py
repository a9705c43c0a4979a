"""Hugging Face: revisions and listings through its own client. HF_ENDPOINT names a mirror."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, RepoFile, get_token, hf_hub_url
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError, its transport's, is not declared
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from wanconv.errors import InputError, UsageError
from wanconv.hubs.ranges import BUSY, retry_after
from wanconv.hubs.types import Address, RemoteFile, Snapshot, endpoint

_T = TypeVar("_T")
_DELAYS_S = (1.0, 2.0, 4.0)
_LONGEST_WAIT_S = 300.0
_REVISION = "check the revision: a branch, a tag or a commit"


class HuggingFace:
    name, title, token_name = "hf", "Hugging Face", "HF_TOKEN"

    def __init__(self, token: str | None = None) -> None:
        self._endpoint = endpoint("HF_ENDPOINT", "https://huggingface.co")
        self._token = token or get_token()
        self._client = HfApi(self._endpoint, token=self._token or False)

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        asked = revision or "main"
        commit = self._ask(repository, asked, lambda: self._client.model_info(repository, revision=asked).sha)
        if not commit:
            raise InputError(f"{self.title} names no commit for {repository} at {asked}", "try again later")
        tree = self._ask(
            repository, asked, lambda: list(self._client.list_repo_tree(repository, recursive=True, revision=commit))
        )
        files = (_remote(entry) for entry in tree if isinstance(entry, RepoFile))
        return Snapshot(self.name, repository, asked, commit, tuple(sorted(files, key=lambda file: file.path)))

    def address(self, snapshot: Snapshot, path: str) -> Address:
        url = hf_hub_url(snapshot.repository, path, revision=snapshot.commit, endpoint=self._endpoint)
        return Address(url, {"Authorization": f"Bearer {self._token}"} if self._token else {})

    def publish(self, folder: Path, paths: Sequence[str], repository: str, private: bool, bars: bool) -> None:
        if not self._token:
            raise UsageError("publishing needs a token that may write", f"set {self.token_name}, or give --token")
        exactly = [re.sub(r"([*?[])", r"[\1]", path) for path in paths]  # the client takes globs
        self._ask(repository, "main", lambda: self._client.create_repo(repository, private=private, exist_ok=True))
        with _bars(bars):
            self._ask(
                repository,
                "main",
                lambda: self._client.upload_folder(
                    repo_id=repository,
                    folder_path=folder,
                    allow_patterns=exactly,
                    commit_message="Published by wanconv",
                ),
            )

    def _ask(self, repository: str, revision: str, question: Callable[[], _T]) -> _T:
        """Returns the client's answer, asked for again where the hub is busy, which the client itself does for lists
        alone; its errors become InputErrors that say what to do."""
        later = f"check the network and try again, or ask the other hub: ms://{repository}"
        try:
            for delay_s in _DELAYS_S:
                try:
                    return question()
                except HfHubHTTPError as error:
                    wait_s = retry_after(error.response.headers.get("Retry-After"))
                    if error.response.status_code not in BUSY or wait_s > _LONGEST_WAIT_S:
                        raise
                    time.sleep(max(delay_s, wait_s))
            return question()
        except GatedRepoError as error:
            hint = f"accept its conditions at {self._endpoint}/{repository}, then set {self.token_name} or give --token"
            raise InputError(f"{repository} on {self.title} is gated", hint) from error
        except RevisionNotFoundError as error:
            raise InputError(f"{repository} on {self.title} has no revision {revision}", _REVISION) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            message = f"{self.title} has no model {repository}, or not for this token"
            raise InputError(message, f"check the name, set {self.token_name}, or try ms://{repository}") from error
        except OfflineModeIsEnabled as error:
            raise InputError(f"{self.title} is not asked: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE") from error
        except HfHubHTTPError as error:
            answer = f"{error.response.status_code} {error.response.reason_phrase}"
            raise InputError(f"{self.title} answers {answer} to a question about {repository}", later) from error
        except RuntimeError as error:  # of an upload, around what the payload's server answered
            why = error.__cause__
            answer = f"it answers {why.response.status_code}" if isinstance(why, HfHubHTTPError) else type(why).__name__
            raise InputError(
                f"{self.title}: {error} ({answer})", "check the token and the room there, and try again"
            ) from error
        except (
            HTTPError,
            OSError,
            ValueError,
            TypeError,
            KeyError,
        ) as error:  # the last three: an answer of other form
            what = "cannot be reached" if isinstance(error, HTTPError | OSError) else "answers what no hub does"
            raise InputError(f"{self.title} {what} at {self._endpoint}: {type(error).__name__}", later) from error


def _remote(entry: RepoFile) -> RemoteFile:
    """Returns a listed file; Git LFS keeps the sha256 of its files, git itself only the name of a blob."""
    if entry.lfs is not None:
        return RemoteFile(entry.path, entry.lfs.size, "sha256", entry.lfs.sha256)
    return RemoteFile(entry.path, entry.size, "git-sha1", entry.blob_id)


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Keeps the client's progress bars off stderr in the block, unless they are wanted."""
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
