"""The pages: everything is on them, nothing on them acts, and a browser agrees."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from flab.runs.report import make_report
from flab.runs.report.markup import code_span, fenced, html, markdown, plain, table
from flab.runs.report.svg import COLOURS
from flab.runs.report.words import visible
from support import made_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
HOST = "hostile.invalid"
HOSTILE = (
    f'</pre></code><script>document.title="pwned"</script><img src=http://{HOST}/x onerror=document.title="pwned">'
    f"<svg onload=alert(1)> | a | b |\n````\n```\n# heading\n[x](http://{HOST}/) <http://{HOST}> www.{HOST} $x^2$ {{{{ 7*7 }}}}"
    "\x1b[31mred\u202eevil\u2066 &amp; &#60;b&#62; `code | span`"
)
PARTS = ["size", "cuts", "budget", "recovery", "scores", "examples", "speed", "footprint", "provenance"]


class Page(HTMLParser):
    """Tags with their attributes, ids, and all text that is not style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def names(self):
        return [tag for tag, _ in self.tags]


def pages(run):
    make_report(run)
    return (run / "report.html").read_text(encoding="utf-8"), (run / "report.md").read_text(encoding="utf-8")


@pytest.fixture
def hostile(run, tmp_path):
    """A run in which every text that others wrote is an attack."""
    source = tmp_path / "hostile.jsonl"
    rows = [row | {"prompt": f"{HOSTILE}\n{n}"} for n, row in enumerate(made_run.PROBLEMS)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in made_run.PASSED:
        value = made_run.results(name, source)
        task = value["tasks"][0]
        task["name"] = HOSTILE
        task["rows"] = [row | {"text": HOSTILE, "detail": HOSTILE} for row in task["rows"]]
        task["summary"]["failures"] = {HOSTILE: 2}
        value["contamination"] = [{"task": HOSTILE, "data": HOSTILE, "warning": HOSTILE}]
        made_run.write(run / f"eval/{name}/results.json", value)
    for name in ("pruned", "recovered"):
        pair = made_run.compared(1.0, 0.9, 1.1, 1, 1, 1.0)
        pair["tasks"][0]["name"] = HOSTILE
        made_run.write(run / f"compare-{name}.json", pair)
    measure = made_run.measured()
    measure["models"][1]["name"] = HOSTILE
    measure["models"][1]["figures"][HOSTILE] = made_run.figure(None, HOSTILE, reason=HOSTILE)
    measure["machine"][HOSTILE] = HOSTILE
    made_run.write(run / "measure.json", measure)
    summary = json.loads((run / "summary.json").read_text())
    made_run.write(run / "summary.json", summary | {"model": HOSTILE, "recipe": HOSTILE})
    plan = made_run.plan(HOSTILE)
    made_run.write(run / "pruned/plan.json", plan | {"warnings": [HOSTILE]})
    return run


def test_every_part_is_on_both_pages(run):
    text, plain = pages(run)
    page = Page(text)
    assert [attrs["id"] for tag, attrs in page.tags if tag == "section"] == PARTS
    words = ["40.0 % of the parameters were removed", "Only the original passes", "return 'original 0'", "def f0():",
             "2 ms (1.5 to 2.5)", "made_up_figure", "291,300 tokens", "for scale only", "assertion"]  # fmt: skip
    assert [one for one in words if one not in page.text.replace("\u00a0", " ")] == []
    assert [one for one in words if one not in plain.replace("\\", "")] == []


def test_missing_parts_say_why_on_the_page(run):
    (run / "measure.json").unlink()
    text, _ = pages(run)
    assert (
        "were not measured: measure: in the recipe measures them, and flab measure RUN/recovered --against MODEL"
        in Page(text).text
    )


def test_the_page_is_one_file_without_scripts_or_addresses(run):
    page = Page(pages(run)[0])
    assert "script" not in page.names()
    assert not {"link", "iframe", "object", "embed", "img"} & set(page.names())
    policy = next(attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    for tag, attrs in page.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), tag
            assert "http" not in (value or ""), (tag, name)
            assert name not in ("src", "href") or (value or "").startswith("#")
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", pages(run)[0]))


def test_tables_and_charts_are_accessible(run):
    page = Page(pages(run)[0])
    names = page.names()
    assert names.count("table") == names.count("caption")
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")
    charts = [attrs for tag, attrs in page.tags if tag == "svg"]
    assert len(charts) > 8
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in charts)
    assert names.count("h1") == 1


def test_no_id_is_there_twice(run):
    ids = [attrs["id"] for _, attrs in Page(pages(run)[0]).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def test_references_inside_drawings_lead_somewhere(run):
    text, _ = pages(run)
    ids = {attrs["id"] for _, attrs in Page(text).tags if "id" in attrs}
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text))
    assert used
    assert {one or two for one, two in used} <= ids


def test_drawings_hold_no_placeholder_and_nothing_of_a_file(run):
    text, _ = pages(run)
    assert not [colour for colour in COLOURS if colour in text]
    assert "var(--accent)" in text
    for left_over in ("<?xml", "<!DOCTYPE svg", "<metadata", "xmlns", "DejaVu"):
        assert left_over not in text


def test_layers_are_drawn_by_the_originals_index(run):
    text, plain = pages(run)
    assert re.findall(r'<li class="(kept|gone)">(\d+)</li>', text) == [("kept", "0"), ("gone", "1"), ("kept", "2")]
    assert "`0 · 2`" in plain


def test_hostile_text_is_inert_in_html(hostile):
    text, _ = pages(hostile)
    page = Page(text)
    assert "script" not in page.names()
    assert "img" not in page.names()
    assert not [tag for tag, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert HOST in page.text
    assert "\x1b" not in text
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)
    assert "␛[31mred⟨U+202E⟩evil" in page.text
    assert "{{ 7*7 }}" in page.text


def walk(tokens):
    for token in tokens:
        yield token
        yield from walk(token.children or [])


@pytest.mark.parametrize("name", ["report.md", "recovered/README.md"])
def test_hostile_text_is_inert_in_markdown(hostile, name):
    make_report(hostile)
    text = (hostile / name).read_text(encoding="utf-8")
    body = text.split("\n---\n", 1)[1] if text.startswith("---") else text
    tokens = list(walk(MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)))
    kinds = {token.type for token in tokens}
    assert not kinds & {"link_open", "image", "html_inline"}
    assert [t.content.strip() for t in tokens if t.type == "html_block"] == (
        ["<!-- written by flab report, which replaces this file; remove this line to keep your own changes -->"]
        if name.endswith("README.md") else []
    )  # fmt: skip
    assert "heading" not in [t.content for t in tokens if t.type == "inline"]
    assert not re.search("[\x1b\u202a-\u202e\u2066-\u2069]", text)
    assert name == "report.md" or ModelCard(text).data.eval_results[0].metric_value == 0.5
    if name == "report.md":
        fences = [token.content for token in tokens if token.type == "fence"]
        assert sum(content.startswith(visible(HOSTILE)) for content in fences) == 12  # four prompts and eight answers


def test_tables_in_markdown_keep_their_columns():
    made = table(["a", "b"], [[HOSTILE, "x"], ["`a | b`", "1. y"]], words=(0,))
    tokens = MarkdownIt("commonmark").enable("table").parse(made)
    cells = [token.type for token in tokens].count("td_open")
    assert cells == 4
    assert made.count("\n") == 3


BREAKING = "t/0\n# heading\n\n- item\n1. one\n\n---\n    code\r\n===\t x"


def test_a_name_of_several_lines_makes_no_structure(run):
    for name in made_run.PASSED:
        value = json.loads((run / f"eval/{name}/results.json").read_text())
        for row in value["tasks"][0]["rows"]:
            row["task_id"] = f"{row['task_id']}{BREAKING}"
        made_run.write(run / f"eval/{name}/results.json", value)
    summary = json.loads((run / "summary.json").read_text())
    made_run.write(run / "summary.json", summary | {"model": BREAKING})
    make_report(run)
    for name in ("report.md", "recovered/README.md"):
        text = (run / name).read_text()
        tokens = (
            MarkdownIt("commonmark").enable("table").parse(text.split("\n---\n", 1)[1] if text[:3] == "---" else text)
        )
        kinds = [token.type for token in tokens]
        assert not {"hr", "code_block", "ordered_list_open"} & set(kinds), name
        assert "heading" not in [
            tokens[place + 1].content for place, kind in enumerate(kinds) if kind == "heading_open"
        ]
        assert [token.tag for token in tokens if token.type == "heading_open"].count("h1") == 1


def test_plain_text_is_one_line():
    assert "\n" not in plain(BREAKING)
    assert plain("a \t\n b ") == "a b "


def test_fences_are_longer_than_what_they_hold():
    assert fenced("a ````` b").startswith("``````\n")
    assert fenced("x", "bash") == "```bash\nx\n```"


def test_code_between_backticks_and_odd_ones():
    assert html("run `flab <x>` now") == "run <code>flab &lt;x&gt;</code> now"
    assert html("one ` alone <b>") == "one ` alone &lt;b&gt;"
    assert markdown("a_b `c_d`") == "a\\_b `c_d`"
    assert code_span("a|b") == "`a\\|b`"


def browse(page, profile, *options):
    """What chromium makes of a page, and what it says on the way."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--disable-component-update", f"--user-data-dir={profile}", "--enable-logging=stderr",
               "--virtual-time-budget=2000", "--dump-dom", *options, page.as_uri()]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def title_of(done):
    return re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


@needs_browser
def test_a_browser_runs_nothing_asks_nobody_and_has_no_complaint(hostile, tmp_path):
    make_report(hostile)
    log = tmp_path / "net.json"
    done = browse(hostile / "report.html", tmp_path / "profile", f"--log-net-log={log}")
    assert title_of(done).endswith("· flab report")
    assert "</html>" in done.stdout
    assert "<script" not in done.stdout
    assert "CONSOLE" not in done.stderr
    assert log.stat().st_size > 0
    assert HOST not in log.read_text(errors="replace")


@needs_browser
def test_the_browser_test_can_fail(tmp_path):
    """The same look at a page that does what must not be done: the browser says so."""
    page, log = tmp_path / "bad.html", tmp_path / "net.json"
    page.write_text(
        f"<title>a</title><script>document.title='pwned';console.error('x')</script><img src=http://{HOST}/x>"
    )
    done = browse(page, tmp_path / "profile", f"--log-net-log={log}")
    assert title_of(done) == "pwned"
    assert "CONSOLE" in done.stderr
    assert HOST in log.read_text(errors="replace")


FRAME = """<title>?</title><iframe id=f src="report.html" style="border:0;width:390px;height:800px"
onload="document.title=document.getElementById('f').contentDocument.documentElement.scrollWidth"></iframe>"""


@needs_browser
def test_a_phone_need_not_scroll_sideways(hostile, tmp_path):
    make_report(hostile)
    (hostile / "phone.html").write_text(FRAME)
    done = browse(hostile / "phone.html", tmp_path / "profile", "--allow-file-access-from-files", "--hide-scrollbars")
    assert title_of(done) == "390"
