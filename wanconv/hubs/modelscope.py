"""ModelScope: listings through its light client, which brings no torch. MODELSCOPE_ENDPOINT names a mirror.

Its API names no commit for a branch, so that a snapshot here is pinned by the sha256 of every file instead: a branch
that moves between listing and download is seen as a digest that does not fit.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

from modelscope_hub import HubApi
from modelscope_hub.config import HubConfig
from modelscope_hub.errors import (
    AlreadyExistsError,
    AuthenticationError,
    HubError,
    NetworkError,
    NotExistError,
    PermissionDeniedError,
)
from requests.exceptions import RequestException

from wanconv.errors import InputError, UsageError
from wanconv.figures import count
from wanconv.hubs.types import Address, RemoteFile, Snapshot, endpoint

_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelScope:
    name, title, token_name = "ms", "ModelScope", "MODELSCOPE_API_TOKEN"

    def __init__(self, token: str | None = None) -> None:
        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)  # its log goes to the terminal otherwise
        self._endpoint = endpoint("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn")
        self._token = token or HubConfig().token
        self._client = HubApi(endpoint=self._endpoint, token=self._token or "")

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        asked = revision or "master"
        with self._explained(repository, asked):
            listed = self._client.list_repo_files(repository, "model", revision=asked)
        files = [RemoteFile(one.path, one.size, "sha256", one.sha256 or "") for one in listed if not one.is_dir]
        if odd := [file.path for file in files if not _SHA256.fullmatch(file.digest)]:
            raise InputError(
                f"{self.title} gives no sha256 for {count(len(odd), 'file')} of {repository}", _later(repository), odd
            )
        return Snapshot(self.name, repository, asked, None, tuple(sorted(files, key=lambda file: file.path)))

    def address(self, snapshot: Snapshot, path: str) -> Address:
        url = self._client.legacy.get_download_url(snapshot.repository, "model", path, snapshot.revision)
        # Its own client sends both: older endpoints know the cookie only.
        secrets = {"Authorization": f"Bearer {self._token}", "Cookie": f"m_session_id={self._token}"}
        return Address(url, secrets if self._token else {})

    def publish(self, folder: Path, paths: Sequence[str], repository: str, private: bool, bars: bool) -> None:
        if not self._token:
            raise UsageError("publishing needs a token that may write", f"set {self.token_name}, or give --token")
        exactly = [re.sub(r"([*?[])", r"[\1]", path) for path in paths]  # the client takes globs
        with self._explained(repository, "master"), redirect_stdout(StringIO()):  # it prints a report of its own
            with suppress(AlreadyExistsError):
                visibility = "private" if private else "public"
                self._client.create_repo(repository, "model", visibility=visibility, license="Other")  # else Apache-2.0
            self._client.upload_folder(
                repository,
                "model",
                folder,
                allow_patterns=exactly,
                commit_message="Published by wanconv",
                use_cache=False,  # it would be a file in the folder; blobs that are there are not sent again anyway
                disable_tqdm=not bars,
            )

    @contextmanager
    def _explained(self, repository: str, revision: str) -> Iterator[None]:
        """Turns the client's errors in the block into InputErrors that say what to do."""
        try:
            yield
        except (AuthenticationError, PermissionDeniedError) as error:
            hint = f"set {self.token_name}, or give --token"
            raise InputError(f"{repository} on {self.title} needs a token that is allowed to do this", hint) from error
        except NotExistError as error:
            message = f"{self.title} has no model {repository} with a revision {revision}, or not for this token"
            raise InputError(message, f"check the name, set {self.token_name}, or try hf://{repository}") from error
        except (NetworkError, RequestException) as error:
            message = f"{self.title} cannot be reached at {self._endpoint}: {type(error).__name__}"
            raise InputError(message, _later(repository)) from error
        except (HubError, RuntimeError) as error:  # the latter after many commits that failed
            raise InputError(
                f"{self.title} refuses what was asked about {repository}: {error}", _later(repository)
            ) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"{self.title} answers what no hub does: {type(error).__name__}", _later(repository)
            ) from error


def _later(repository: str) -> str:
    return f"check the network and try again, or ask the other hub: hf://{repository}"
