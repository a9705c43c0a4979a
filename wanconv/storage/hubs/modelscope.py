"""ModelScope: lists within bounds, uploads through its light client. MODELSCOPE_ENDPOINT names a mirror.

Its API names no commit for a branch. A snapshot is therefore pinned by the sha256 of every file: if a branch moves
between listing and download, a digest does not match.
"""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from urllib.parse import urlencode

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

from wanconv.errors import HubUnreachable, InputError, UsageError, WanconvError
from wanconv.storage.hubs.answers import HubAnswer, Questions
from wanconv.storage.hubs.patience import Patience
from wanconv.storage.hubs.rows import remote_file, shown
from wanconv.storage.hubs.types import Address, RemoteFile, Snapshot, endpoint, usable_token
from wanconv.storage.hubs.uploads import guarded_modelscope
from wanconv.types.documents import JsonMapping

_MOST_AT_ONCE = 3000  # entries: the API truncates a list there without a word
_DENIED = 10010103009  # its code for an invalid token, which comes with status 400


class ModelScope:
    name, title, token_name = "ms", "ModelScope", "MODELSCOPE_API_TOKEN"

    def __init__(self, token: str | None = None, patience: Patience | None = None) -> None:
        logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)  # without this, its log goes to the terminal
        self._endpoint = endpoint("MODELSCOPE_ENDPOINT", "https://www.modelscope.cn")
        self._token = usable_token(token or HubConfig().token, self.token_name)
        self._patience = patience or Patience()

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        asked = revision or "master"
        questions = Questions(self.title, self._endpoint, repository, self._patience)
        rows = [row for row in self._rows(questions, repository, asked) if not _is_folder(row)]
        return Snapshot(self.name, repository, asked, None, questions.whole(questions.files(rows, _file)))

    def _rows(self, questions: Questions, repository: str, revision: str) -> Iterator[JsonMapping]:
        """Yields the whole list: as one answer or, if that is truncated, folder by folder."""
        folders = [""]
        while folders:
            folder = folders.pop()
            rows = self._ask(questions, repository, revision, folder, recursive=True)
            if len(rows) < _MOST_AT_ONCE:
                yield from rows
                continue
            rows = self._ask(questions, repository, revision, folder, recursive=False)
            if len(rows) >= _MOST_AT_ONCE:
                raise questions.lie(f"at most {_MOST_AT_ONCE} files of a folder that has more")
            yield from rows
            below = [str(row.get("Path")) for row in rows if _is_folder(row)]
            folders += [path for path in below if path.startswith(f"{folder}/" if folder else "") and path != folder]

    def _ask(
        self, questions: Questions, repository: str, revision: str, folder: str, *, recursive: bool
    ) -> Sequence[JsonMapping]:
        query = {"Revision": revision, "Recursive": str(recursive)} | ({"Root": folder} if folder else {})
        url = f"{self._endpoint}/api/v1/models/{repository}/repo/files?{urlencode(query, errors='replace')}"
        answer = questions.ask(Address(url, self._secrets()))
        body = answer.value
        if answer.status != 200 or not isinstance(body, dict) or body.get("Success") is False:
            raise self._refused(questions, repository, revision, answer)
        data = body.get("Data", body)
        return questions.rows(data.get("Files") if isinstance(data, dict) else data, "Files")

    def _refused(self, questions: Questions, repository: str, revision: str, answer: HubAnswer) -> InputError:
        body: JsonMapping = answer.value if isinstance(answer.value, dict) else {}
        if answer.status in (401, 403) or body.get("Code") == _DENIED:
            return self._denied(repository)
        if answer.status == 404:
            return self._absent(repository, revision)
        said = f" ({shown(body['Message'])})" if isinstance(body.get("Message"), str) else ""
        return questions.lie(f"{answer.reason}{said}")

    def address(self, snapshot: Snapshot, path: str) -> Address:
        query = urlencode({"Revision": snapshot.revision, "FilePath": path}, errors="replace")
        return Address(f"{self._endpoint}/api/v1/models/{snapshot.repository}/repo?{query}", self._secrets())

    def _secrets(self) -> dict[str, str]:
        # Its own client sends both: older endpoints know only the cookie.
        secrets = {"Authorization": f"Bearer {self._token}", "Cookie": f"m_session_id={self._token}"}
        return secrets if self._token else {}

    def _denied(self, repository: str) -> InputError:
        hint = f"set {self.token_name}, or give `token`"
        return InputError(f"{repository} on {self.title} needs a token that is allowed to do this", hint)

    def _absent(self, repository: str, revision: str) -> InputError:
        message = f"{self.title} has no model {repository} with a revision {revision}, or not for this token"
        return InputError(message, f"check the name, set {self.token_name}, or try hf://{repository}")

    def publish(self, folder: Path, paths: Sequence[str], repository: str, private: bool, bars: bool) -> None:
        if not self._token:
            raise UsageError("publishing needs a token that may write", f"set {self.token_name}, or give `token`")
        exactly = [re.sub(r"([*?[])", r"[\1]", path) for path in paths]  # the client takes globs
        client = HubApi(endpoint=self._endpoint, token=self._token)
        guarded_modelscope(client, self._endpoint, self._patience)
        with self._explained(repository), redirect_stdout(StringIO()):  # it prints a report of its own
            with suppress(AlreadyExistsError):
                visibility = "private" if private else "public"
                client.create_repo(repository, "model", visibility=visibility, license="Other")  # default: Apache-2.0
            client.upload_folder(
                repository,
                "model",
                folder,
                allow_patterns=exactly,
                commit_message="Published by wanconv",
                use_cache=False,  # it would be a file in the folder; known blobs are not sent again anyway
                disable_tqdm=not bars,
            )

    @contextmanager
    def _explained(self, repository: str) -> Iterator[None]:
        """Turns any exception of the client in the block into an InputError that says what to do."""
        later = "check the network, the token and the room there, and try again"
        try:
            yield
        except (WanconvError, MemoryError):
            raise
        except (AuthenticationError, PermissionDeniedError) as error:
            raise self._denied(repository) from error
        except NotExistError as error:
            raise self._absent(repository, "master") from error
        except (NetworkError, RequestException) as error:
            message = f"{self.title} cannot be reached at {self._endpoint}: {type(error).__name__}"
            raise HubUnreachable(message, later) from error
        except (HubError, RuntimeError) as error:  # the latter after many commits that failed
            message = f"{self.title} refuses what was asked about {repository}: {str(error)[:300]}"
            raise InputError(message, later) from error
        except Exception as error:  # the client does not document what it raises for an answer
            message = f"{self.title} answers what no hub does: {type(error).__name__}"
            raise InputError(message, later) from error


def _is_folder(row: JsonMapping) -> bool:
    return row.get("Type") == "tree"


def _file(row: JsonMapping) -> RemoteFile:
    return remote_file(row.get("Path"), row.get("Size"), "sha256", row.get("Sha256"))
