"""The documentation's site, as mkdocs builds it: every link leads somewhere, guides are found."""

import importlib.util
import json
import re

import pytest
from support.processes import ROOT, run_python

import keras_yogi

REPOSITORY = "https://host.invalid/owner/name"
MISSING = [
    name
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python")
    if importlib.util.find_spec(name.partition(".")[0]) is None
]
needs_mkdocs = pytest.mark.skipif(bool(MISSING), reason="needs mkdocs: pip install -e '.[docs]'")


def checked(site):
    return run_python(ROOT / ".ci" / "check_site.py", site)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built in a checkout whose remote is known, so that there are links to the repository."""
    folder = tmp_path_factory.mktemp("site")
    remote = dict(
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0="remote.origin.url",
        GIT_CONFIG_VALUE_0=f"{REPOSITORY}.git",
    )
    build = ("-m", "mkdocs", "build", "--quiet", "--site-dir", folder)
    done = run_python(*build, cwd=ROOT, **remote)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@needs_mkdocs
def test_every_link_leads_somewhere(site):
    done = checked(site)
    assert done.returncode == 0, done.stderr


@needs_mkdocs
def test_pages_lead_to_the_repository(site):
    page = (site / "distributed" / "index.html").read_text("utf-8")
    assert f"{REPOSITORY}/edit/main/docs/distributed.md" in page
    assert f"{REPOSITORY}/blob/main/examples/multi_worker.py" in page


@needs_mkdocs
def test_every_public_name_has_a_place_in_the_reference(site):
    pages = [path.read_text("utf-8") for path in site.glob("reference/**/*.html")]
    places = set(re.findall(r'id="(keras_yogi[\w.]*)"', "".join(pages)))
    assert places >= {f"keras_yogi.{name}" for name in keras_yogi.__all__}
    assert "Report" in {name.rpartition(".")[2] for name in places}
    # What Keras alone calls, or what is Keras's own, is none of a reader's business.
    internal = {"stateless_apply", "assign", "save_own_variables", "add_variable", "_apply"}
    assert not internal & {name.rpartition(".")[2] for name in places}


@needs_mkdocs
def test_search_finds_guides_before_the_reference(site):
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    boosts = {}
    for entry in index["docs"]:
        part = entry["location"].partition("/")[0]
        boosts.setdefault(part in ("api", "reference"), set()).add(entry.get("boost", 1))
    assert max(boosts[True]) < min(boosts[False])


@pytest.mark.parametrize(
    ("link", "fault"),
    [
        ("missing/", "no such file in the site"),
        ("other.html#nowhere", "no such place on that page"),
        (f"{REPOSITORY}/blob/main/missing.py", "no such file in the repository"),
        ("http://host.invalid/", "must be https"),
        ("other.html#here", None),
        (f"{REPOSITORY}/blob/main/README.md", None),
        ("https://host.invalid/", None),
    ],
)
def test_the_check_sees_links_that_lead_nowhere(link, fault, tmp_path):
    source = f'<a class="md-source" href="{REPOSITORY}">source</a>'
    (tmp_path / "index.html").write_text(f'{source}<a href="{link}">it</a>')
    (tmp_path / "other.html").write_text('<h2 id="here">Here</h2>')
    done = checked(tmp_path)
    assert done.returncode == (fault is not None)
    assert done.stderr.strip() == (f"index.html: {link}: {fault}" if fault else "")
