"""The scripts around the site builder. The builder itself is not needed; `make docs` runs everything."""

import importlib.util

import pytest

from tests.end_to_end.commands import ROOT

_spec = importlib.util.spec_from_file_location("site_pages", ROOT / "docs" / "site" / "pages.py")
pages = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pages)

CONFIG = "docs_dir: build/docs\nsite_dir: build/site\nnav: [index.md, {More: [{Data: data.md}, a.md]}]\n"
FILES = {
    "README.md": "# Front\n",
    "LICENSE": "",
    "launch/run me.sh": "",
    "docs/data.md": "# Data\n",
    "docs/a.md": "# A\n",
    "docs/images/one.png": "image",
    "docs/site/pages.py": "",
    "mkdocs.yml": CONFIG,
}


@pytest.fixture
def repository(tmp_path):
    """Returns a function that creates a repository of FILES and the given ones, and returns its folder."""

    def make(**changed):
        for file, text in (FILES | changed).items():
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(text)
        return tmp_path

    return make


@pytest.fixture
def page(repository, capsys):
    """Returns a function that returns the page of docs/a.md, or the printed problems."""

    def write(text, more_config=""):
        root = repository(**{"docs/a.md": text, "mkdocs.yml": CONFIG + more_config})
        status = pages.main(["write"], root)
        printed = capsys.readouterr().err
        assert status == (1 if printed else 0)
        return printed or (root / "build/docs/a.md").read_text()

    return write


def test_the_site_sources_are_complete(repository):
    root = repository(
        **{"README.md": "[data](docs/data.md#x) ![](docs/images/one.png)", "docs/a.md": "[up](../README.md)"}
    )
    (root / "build/docs").mkdir(parents=True)
    (root / "build/docs/removed.md").write_text("")
    assert pages.main(["write"], root) == 0
    folder = root / "build/docs"
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {"index.md", "a.md", "data.md", "images/one.png"}
    assert (folder / "index.md").read_text() == "[data](data.md#x) ![](images/one.png)"
    assert (folder / "a.md").read_text() == "[up](index.md)"
    assert (folder / "images/one.png").read_text() == "image"


def test_links_from_a_page_in_a_subfolder_are_relative(repository):
    root = repository(**{"docs/more/b.md": "[A](../a.md) [top](../../README.md) ![](../images/one.png) [self](b.md#x)"})
    config = pages.yaml.safe_load(CONFIG) | {"nav": ["index.md", "a.md", "data.md", "more/b.md"]}
    assert pages.write(root, config) == []
    wanted = "[A](../a.md) [top](../index.md) ![](../images/one.png) [self](b.md#x)"
    assert (root / "build/docs/more/b.md").read_text() == wanted


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("[d](data.md)", "[d](data.md)"),
        ("[d](../docs/data.md 'a title')", '[d](data.md "a title")'),
        ("[d](<../docs/data.md> 'a \"title\"')", "[d](data.md 'a \"title\"')"),
        ("[d](\n../docs/data.md\n), and on", "[d](data.md), and on"),
        ("[a `b](c)` **d**](../docs/data.md)", "[a `b](c)` **d**](data.md)"),
        ("[d][there]\n\n[there]: ../docs/data.md#x", "[d](data.md#x)\n\n[there]: ../docs/data.md#x"),
        ("[There][] [there]\n\n[there]: ../README.md", "[There](index.md) [there](index.md)\n\n[there]: ../README.md"),
        ("![one](../docs/images/one.png)", "![one](images/one.png)"),
        ("[![one](../docs/images/one.png)](../README.md)", "[![one](images/one.png)](index.md)"),
        ("![of [d](data.md)](../docs/images/one.png)", "![of [d](data.md)](images/one.png)"),
        ("|a|b|\n|-|-|\n|x\\|y [r](../README.md)|[r](../README.md)|", "|a|b|\n|-|-|\n|x\\|y [r](index.md)|[r](index.md)|"),
        ("| [r](../README.md) | [r](../README.md) |\n|---|---|", "| [r](index.md) | [r](index.md) |\n|---|---|"),
        ("> * [r](../README.md)\n>   and [r](../README.md)", "> * [r](index.md)\n>   and [r](index.md)"),
        ("* x\n\n\ty\n\t[r](../README.md)", "* x\n\n\ty\n\t[r](index.md)"),
        ("# The [r](../README.md) #", "# The [r](index.md) #"),
        # Not a page of the site: shown as code.
        ("[the `LICENSE`](../LICENSE)", "the `LICENSE`"),
        ("[LICENSE](../LICENSE) and [**all**](../launch)", "<code>LICENSE</code> and <code>**all**</code>"),
        ("[run](<../launch/run me.sh>)", "<code>run</code>"),
        ("[this](site/pages.py)", "<code>this</code>"),
        ("[x][l]\n\n[l]: ../LICENSE", "<code>x</code>\n\n[l]: ../LICENSE"),
    ],
)  # fmt: skip
def test_links_are_rewritten_for_the_site(page, written, wanted):
    assert page(written) == wanted


def test_links_to_other_files_point_to_the_repository_host(page):
    found = page("[l](../LICENSE#L3) [r](<../launch/run me.sh>) [f](../launch/)", "repo_url: https://host/deit/\n")
    start = "https://host/deit"
    assert (
        found
        == f"[l]({start}/blob/main/LICENSE#L3) [r]({start}/blob/main/launch/run%20me.sh) [f]({start}/tree/main/launch)"
    )


@pytest.mark.parametrize(
    "text",
    [
        "```\n[x](../README.md)\n```\n",
        "~~~~ markdown\n```\n[x](../gone.md)\n~~~\n~~~~\n",
        "* a\n\n    ```\n    [x](../gone.md)\n    ```\n",
        "Type\n\n    [x](../gone.md)\n\nand `[x](../gone.md)` or ``a ` [x](gone.md)``.\n",
        "| a |\n|---|\n| `[x](../gone.md)` |\n",
        r"\[x](../gone.md) and [x] (../gone.md) and [Model][deit_jax.Model]" "\n",
        "<!-- [x](../gone.md) -->\n",
        "::: deit_jax.create_model\n    options:\n      members: [x]\n",
        "[x](https://host/a.md) <https://host> [x](//host/a.md) [x](mailto:a@b) [x](#a)\n",
    ],
)
def test_code_and_external_links_are_unchanged(page, text):
    assert page(text) == text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# A\n\n[x](gone.md#x)", "docs/a.md:3: links to gone.md, which is not in the repository"),
        ("x\n\n| a |\n|---|\n| [x](../docs/gone.md) |", "docs/a.md:5: links to ../docs/gone.md, which is not in the"),
        ("[x][y]\n\n[y]: gone.md", "docs/a.md:1: links to gone.md, which is not in the repository"),
        ("![x](images/two.png)", "docs/a.md:1: shows images/two.png, which is not in the repository"),
        ("![x](../LICENSE)", "docs/a.md:1: shows ../LICENSE, which has to be under docs/ for that"),
        ("[x](../../etc)", "docs/a.md:1: links to ../../etc, which is not in the repository"),
        ("[x](/LICENSE)", "docs/a.md:1: links to /LICENSE, which is not in the repository"),
        ("[x](/)", "docs/a.md:1: links to /, which is not in the repository"),
    ],
)
def test_a_broken_link_is_reported_in_one_line(page, tmp_path, text, problem):
    found = page(text)
    assert found.startswith(problem) and found.count("\n") == 1
    assert not (tmp_path / "build").exists()


def test_all_problems_are_reported(repository, capsys):
    root = repository(**{"README.md": "[x](docs/b.md)", "docs/b.md": "[x](c.md) [x](d.md)", "docs/data.md": "ok"})
    (root / "mkdocs.yml").write_text(CONFIG.replace("data.md", "date.md"))
    assert pages.main(["write"], root) == 1
    assert capsys.readouterr().err.splitlines() == [
        "mkdocs.yml: nav names date.md, which is not a page",
        "mkdocs.yml: nav does not name b.md",
        "mkdocs.yml: nav does not name data.md",
        "docs/b.md:1: links to c.md, which is not in the repository",
        "docs/b.md:1: links to d.md, which is not in the repository",
    ]


@pytest.mark.parametrize("folder", ["docs", "build", "build/../docs", "."])
def test_a_folder_of_the_repository_is_never_deleted(repository, folder):
    root = repository()
    [problem] = pages.write(root, {"docs_dir": folder, "nav": ["index.md", "data.md", "a.md"]})
    assert problem == "mkdocs.yml: docs_dir has to be under build/, because what it holds is deleted first"
    assert (root / "docs/a.md").exists()


def test_the_pages_of_this_repository_have_no_broken_link(tmp_path, capsys):
    for path in ROOT.iterdir():
        if path.name != "build":
            (tmp_path / path.name).symlink_to(path)
    status = pages.main(["write"], tmp_path)
    assert (status, capsys.readouterr().err) == (0, "")
    assert (tmp_path / "build/docs/index.md").exists()


def test_the_command_must_be_write_or_check(repository, capsys):
    assert pages.main([], repository()) == 2
    assert capsys.readouterr().err.startswith("usage: ")


# --- the built site -------------------------------------------------------------------------------------------------

SITE = {
    "index.html": '<h1 id="front">F</h1><a href="a.html#the-a">a</a><a href="#front">f</a><a href="">f</a><a href="#">f</a>'
    '<link rel="stylesheet" href="all.css"><link rel="canonical" href="https://host/"><link rel="next" href="a.html">',
    "a.html": '<h1 id="the-a">A</h1><a name="old"></a><a href="index.html">F</a><a href="https://host/#x">elsewhere</a>'
    '<img src="images/one.png"><img src="data:image/png;base64,AA=="><a href="images/one.png">one</a><a href="#old">o</a>',
    "data/index.html": '<a href="../a.html#the-a">a</a><a href="../#front">front</a><a href="./">self</a><a href="/">f</a>',
    "404.html": '<script src="/all.js"></script><a href="/a.html#the-a">a</a>',
    "all.css": "a { background: url('data:image/svg+xml;xmlns=http://www.w3.org') } @import 'other.css';",
    "all.js": "",
    "images/one.png": "image",
}


@pytest.fixture
def problems_of(repository, capsys):
    """Returns a function that returns the output of `check` for SITE with some files replaced."""

    def check(**changed):
        root = repository()
        assert pages.main(["write"], root) == 0
        for file, text in (SITE | changed).items():
            if text is not None:
                (root / "build/site" / file).parent.mkdir(parents=True, exist_ok=True)
                (root / "build/site" / file).write_text(text)
        status = pages.main(["check"], root)
        printed = capsys.readouterr().err.splitlines()
        assert status == (1 if printed else 0)
        return printed

    return check


def test_a_valid_site_has_no_problems(problems_of):
    assert problems_of() == []


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<a href="gone.html">', "links to gone.html, which is not there"),
        ('<a href="a.md">', "links to a.md, which is not there"),
        ('<a href="images/">', "links to images/, which is not there"),
        ('<a href="../docs/a.md">', "links to ../docs/a.md, which is not there"),
        ('<link rel="prev" href="gone.html">', "links to gone.html, which is not there"),
        ('<a href="a.html#gone">', "links to a.html#gone, and there is no such anchor"),
        ('<a href="#gone">', "links to #gone, and there is no such anchor"),
        ('<a href="data/#gone">', "links to data/#gone, and there is no such anchor"),
        ('<img src="gone.png">', "loads gone.png, which is not there"),
        ('<script src="/gone.js"></script>', "loads /gone.js, which is not there"),
        ('<link rel="icon" href="gone.ico">', "loads gone.ico, which is not there"),
        ('<img srcset="images/one.png 1x, two.png 2x">', "loads two.png, which is not there"),
        ('<script src="https://host/x.js"></script>', "makes a browser fetch https://host/x.js"),
        ('<link rel="stylesheet" href="//host/x.css">', "makes a browser fetch //host/x.css"),
        ('<iframe src="https://host/"></iframe>', "makes a browser fetch https://host/"),
        ('<link rel="preconnect" href="https://host">', "makes a browser fetch https://host"),
    ],
)
def test_missing_targets_and_external_resources_are_reported(problems_of, html, problem):
    assert problems_of(**{"index.html": SITE["index.html"] + html}) == [f"index.html: {problem}"]


@pytest.mark.parametrize(
    "css", ["@import 'https://host/x';", "a { b: url(//host/x) }", 'a { b: url("https://host/x") }']
)
def test_external_resources_of_style_sheets_are_reported(problems_of, css):
    [problem] = problems_of(**{"all.css": css})
    assert problem.startswith("all.css: makes a browser fetch ") and problem.endswith("//host/x")


def test_every_page_is_built(problems_of):
    assert "data.md: the site has no page of it" in problems_of(**{"data/index.html": None})


def test_an_empty_site_is_a_problem(repository, capsys):
    assert pages.main(["check"], repository()) == 1
    assert capsys.readouterr().err.endswith("build/site: there are no pages\n")
