"""Hugging Face: lists within bounds, uploads through its own client. HF_ENDPOINT names a mirror.

Its client follows a `Link` to any host, with the token, and reads any answer. Lists are therefore requested here.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from huggingface_hub import HfApi, get_token, hf_hub_url, is_offline_mode
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from requests.utils import parse_header_links

from wanconv.errors import HubUnreachable, InputError, UsageError, WanconvError
from wanconv.storage.hubs.answers import HubAnswer, Questions
from wanconv.storage.hubs.patience import Patience
from wanconv.storage.hubs.rows import remote_file, shown
from wanconv.storage.hubs.types import Address, RemoteFile, Snapshot, endpoint, usable_token
from wanconv.storage.hubs.uploads import guarded_hugging_face
from wanconv.types.documents import JsonMapping

_T = TypeVar("_T")
_REVISION = "check the revision: a branch, a tag or a commit"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_LINK = 16_000  # characters


class HuggingFace:
    name, title, token_name = "hf", "Hugging Face", "HF_TOKEN"

    def __init__(self, token: str | None = None, patience: Patience | None = None) -> None:
        self._endpoint = endpoint("HF_ENDPOINT", "https://huggingface.co")
        self._token = usable_token(token or get_token(), self.token_name)
        self._patience = patience or Patience()

    def snapshot(self, repository: str, revision: str | None) -> Snapshot:
        if is_offline_mode():
            raise HubUnreachable(f"{self.title} is not asked: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
        asked = revision or "main"
        questions = Questions(self.title, self._endpoint, repository, self._patience)
        home = f"{self._endpoint}/api/models/{repository}"
        value = self._ask(questions, repository, asked, f"{home}/revision/{quote(asked, safe='')}").value
        if not isinstance(value, dict):
            raise questions.lie(f"{shown(value)} where a revision is described")
        commit = questions.commit(value.get("sha"))
        if _COMMIT.fullmatch(asked) and commit != asked:
            raise questions.lie(f"commit {commit} for commit {asked}")
        files: list[RemoteFile] = []
        query, seen = "recursive=true&expand=false", set[str]()
        while query and query not in seen:
            seen.add(query)
            answer = self._ask(questions, repository, asked, f"{home}/tree/{commit}?{query}")
            rows = questions.rows(answer.value, "a list of files")
            files += questions.files((row for row in rows if row.get("type") != "directory"), _file)
            query = _next(answer, questions)
        if query:
            raise questions.lie("the same page of a list again")
        return Snapshot(self.name, repository, asked, commit, questions.whole(files))

    def _ask(self, questions: Questions, repository: str, revision: str, url: str) -> HubAnswer:
        """Returns an answer of status 200; raises InputError that says what to do."""
        answer = questions.ask(self._address(url))
        code = answer.headers.get("X-Error-Code", "")
        if answer.status == 200:
            return answer
        if code == "GatedRepo":
            raise self._gated(repository)
        if code == "RevisionNotFound":
            raise InputError(f"{repository} on {self.title} has no revision {revision}", _REVISION)
        if answer.status in (401, 404):
            raise self._absent(repository)
        raise questions.lie(answer.reason)

    def address(self, snapshot: Snapshot, path: str) -> Address:
        return self._address(hf_hub_url(snapshot.repository, path, revision=snapshot.commit, endpoint=self._endpoint))

    def _address(self, url: str) -> Address:
        return Address(url, {"Authorization": f"Bearer {self._token}"} if self._token else {})

    def _gated(self, repository: str) -> InputError:
        hint = f"accept its conditions at {self._endpoint}/{repository}, then set {self.token_name} or give `token`"
        return InputError(f"{repository} on {self.title} is gated", hint)

    def _absent(self, repository: str) -> InputError:
        message = f"{self.title} has no model {repository}, or not for this token"
        return InputError(message, f"check the name, set {self.token_name}, or try ms://{repository}")

    def publish(self, folder: Path, paths: Sequence[str], repository: str, private: bool, bars: bool) -> None:
        if not self._token:
            raise UsageError("publishing needs a token that may write", f"set {self.token_name}, or give `token`")
        if is_offline_mode():
            raise HubUnreachable(f"{self.title} is not asked: HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
        exactly = [re.sub(r"([*?[])", r"[\1]", path) for path in paths]  # the client takes globs
        client = HfApi(self._endpoint, token=self._token)
        with guarded_hugging_face(self._endpoint, self._patience), _bars(bars):
            self._explained(repository, lambda: client.create_repo(repository, private=private, exist_ok=True))
            self._explained(
                repository,
                lambda: client.upload_folder(
                    repo_id=repository,
                    folder_path=folder,
                    allow_patterns=exactly,
                    commit_message="Published by wanconv",
                ),
            )

    def _explained(self, repository: str, upload: Callable[[], _T]) -> _T:
        """Returns the client's result; any exception becomes an InputError that says what to do."""
        later = "check the network, the token and the room there, and try again"
        try:
            return upload()
        except WanconvError:
            raise
        except GatedRepoError as error:
            raise self._gated(repository) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise self._absent(repository) from error
        except HfHubHTTPError as error:
            raise InputError(
                f"{self.title} answers {_answer(error)} to a question about {repository}", later
            ) from error
        except RuntimeError as error:  # of an upload, around the answer of the payload's server
            why = error.__cause__
            if isinstance(why, WanconvError):
                raise why from error
            answer = f"it answers {_answer(why)}" if isinstance(why, HfHubHTTPError) else type(why).__name__
            raise InputError(f"{self.title}: {str(error)[:300]} ({answer})", later) from error
        except MemoryError:
            raise
        except Exception as error:  # the client does not document what it raises for an answer
            message = f"{self.title} cannot be published to at {self._endpoint}: {type(error).__name__}"
            raise InputError(message, later) from error


def _answer(error: HfHubHTTPError) -> str:
    """Returns status and reason of an answer that the client raised as an error."""
    response = getattr(error, "response", None)
    return (
        f"{getattr(response, 'status_code', 'an error')} {str(getattr(response, 'reason_phrase', ''))[:100]}".rstrip()
    )


def _next(answer: HubAnswer, questions: Questions) -> str:
    """Returns the query of the next page, empty after the last; the link's host and path are ignored."""
    link = answer.headers.get("Link", "")
    if len(link) > _MAX_LINK:
        raise questions.lie(f"a Link header of {len(link)} characters")
    try:
        links = parse_header_links(link) if link else []
        return next((urlsplit(one["url"]).query for one in links if one.get("rel") == "next"), "")
    except ValueError as error:
        raise questions.lie(f"{shown(link)} as the next page") from error


def _file(row: JsonMapping) -> RemoteFile:
    """Returns a listed file; Git LFS keeps the sha256 of its files, git itself only the name of a blob."""
    lfs = row.get("lfs")
    if lfs is None:
        return remote_file(row.get("path"), row.get("size"), "git-sha1", row.get("oid"))
    if not isinstance(lfs, dict):
        raise ValueError(f"lfs is {shown(lfs)} (of {shown(row.get('path'))})")
    return remote_file(row.get("path"), lfs.get("size"), "sha256", lfs.get("oid"))


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Keeps the client's progress bars off stderr within the block, unless they are wanted."""
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
