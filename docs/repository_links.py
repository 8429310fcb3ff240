"""Links from the documentation's site to the repository: a hook of mkdocs.

The address is that of the git remote "origin", so that a fork's site leads to the fork. Without one
the site has no such links, and of a link to a file outside docs/ its text alone.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
REMOTE = re.compile(
    r"(?:(?:https?|ssh|git)://(?:[^@/]+@)?([^/:]+)(?::\d+)?/|[^@/:]+@([^/:]+):)(.+?)(?:\.git)?/?"
)


def address() -> str | None:
    """As a browser takes it; None without a remote, or for one that is a folder."""
    command = ["git", "config", "--get", "remote.origin.url"]
    try:
        remote = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    match = REMOTE.fullmatch(remote.stdout.strip())
    return f"https://{match[1] or match[2]}/{match[3]}" if match else None


def on_config(config: Any) -> Any:
    """Gives every page a link to the repository, and one to its source."""
    config.repo_url = address()
    if config.repo_url:
        config.repo_name = config.repo_url.split("/", 3)[3]
        config.edit_uri = "edit/main/docs/"
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Turns links to files outside docs/ into links to the repository."""
    folder = Path(page.file.abs_src_path).parent

    def replaced(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        if target.is_relative_to(config.docs_dir):
            return match[0]
        if not config.repo_url:
            return match[1]
        path = target.relative_to(ROOT).as_posix()
        return f"[{match[1]}]({config.repo_url}/blob/main/{path}{match[3] or ''})"

    return LINK.sub(replaced, markdown)
