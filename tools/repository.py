"""Write the project's address into every file that shows it: make repository URL=https://github.com/OWNER/NAME

pyproject.toml ([project.urls] Repository) holds it; badges, clone and install lines, set-up cells and CITATION.cff
repeat it, and a test (tests/test_project.py) keeps them equal. Without a URL the address and its places are printed.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ADDRESS = re.compile(r'^Repository = "https://github\.com/([\w.-]+/[\w.-]+)"$', re.MULTILINE)


def places() -> list[Path]:
    """The files that show the address; executed notebooks in results/ keep the one they were run from."""
    return [
        *(ROOT / name for name in ("pyproject.toml", "README.md", "CITATION.cff")),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "notebooks").rglob("*.ipynb")),
    ]


def address() -> str:
    """OWNER/NAME as pyproject.toml has it."""
    found = ADDRESS.search((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if not found:
        sys.exit('error: pyproject.toml has no line like Repository = "https://github.com/OWNER/NAME"')
    return found[1]


def main(arguments: list[str]) -> None:
    old = address()
    if not arguments:
        print(f"https://github.com/{old}")
        return
    new = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", arguments[0])
    if not new:
        sys.exit(f"error: {arguments[0]} is not like https://github.com/OWNER/NAME, where Colab can open notebooks")
    clone, new_clone = old.split("/")[1], new[1].split("/")[1]
    for path in places():
        text = path.read_text(encoding="utf-8")
        changed = re.sub(rf"(github(?:\.com)?/){re.escape(old)}\b", rf"\g<1>{new[1]}", text)
        changed = changed.replace(f"&& cd {clone}", f"&& cd {new_clone}")
        # the set-up cell runs a file of the clone, whose folder is named after the repository
        changed = changed.replace(f'run_path(\\"{clone}/tools', f'run_path(\\"{new_clone}/tools')
        if changed != text:
            path.write_text(changed, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
