"""The documentation site: its commands, code, links and names. `make docs` builds it, and runs the gallery."""

import ast
import contextlib
import importlib
import importlib.util
import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

import splat_ssim.compat
from splat_ssim._importing import imported

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path[:0] = [str(DOCS / "_ext"), str(ROOT / "scripts")]
import api_pages  # noqa: E402
import benchmark_pages  # noqa: E402
import draw_layout  # noqa: E402
import kernel_pictures  # noqa: E402
import link_check  # noqa: E402

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGES = sorted(path for path in DOCS.rglob("*.md") if "generated" not in path.parts)
GALLERY = sorted((DOCS / "gallery").glob("*.py"))
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FIRST_WORDS = ("python", "make", "pip", "splat-")
#: Placeholders in commands, which stand for the reader's files -> the tests' files.
PLACEHOLDERS = {"SCENE": "assets/lund", "scene": "assets/lund", "nerf_synthetic/chair": "assets/chair_200"}


# --- commands


def commands_of(text, *, is_markdown):
    """The commands of a page: in console fences, in indented blocks, and as inline code in tables and in text."""
    if is_markdown:
        lines = [line for language, code in FENCE.findall(text) if language == "console" for line in code.splitlines()]
        rest = FENCE.sub("", text)
        lines += [line[4:] for line in rest.splitlines() if line.startswith("    ")]
    else:
        # A gallery script: directives in its comments.
        rest = text
        lines = [found[1] for found in re.finditer(r"^#    (.+)$", text, re.MULTILINE)]
    lines += [code for code in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", rest) if " " in code]
    return [line.partition("  #")[0].strip() for line in lines if is_command(line)]


def is_command(line):
    words = [word for word in line.split() if not re.fullmatch(r"\w+=\S*", word)]
    return bool(words) and words[0].startswith(FIRST_WORDS) and words[0] != "python3"


def all_commands():
    for path in (*PAGES, *GALLERY):
        for command in commands_of(path.read_text(), is_markdown=path.suffix == ".md"):
            yield pytest.param(command, id=f"{path.relative_to(DOCS)}: {command[:70]}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Run folders of a tiny scene and a tiny volume, for the pages' commands on finished runs."""
    from splat_ssim.trainer.cli import main

    folder = tmp_path_factory.mktemp("runs")
    for words in (
        f"--data-dir {ROOT}/assets/chair_200 --result-dir {folder}/scene --steps 3 --data.factor 8 "
        "--strategy.budget 50",
        f"--config voxel_mri.yaml --data-dir {ROOT}/assets/brain_mri/T1.nii.gz --result-dir {folder}/volume --steps 2 "
        "--strategy.budget 60",
    ):
        main([*shlex.split(words), "--device", "cpu", "--output.no-progress"])
    return folder


def option_names(words):
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def console_function(name):
    """The module:function that a console command calls; "" for the trainer."""
    source = (ROOT / "splat_ssim_commands.py").read_text()
    entry = PROJECT["scripts"][name].partition(":")[2]
    body = next(n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == entry)
    found = re.search(r'"(splat_ssim[\w.]*:\w+)"', ast.unparse(body).replace("'", '"'))
    return found[1] if found else ""


def check_console(name, words, runs):
    """Parses the words as the command does. For the trainer, this reads the config and checks every value."""
    import tyro

    function = console_function(name)
    if not function:
        from splat_ssim.trainer.cli import parse

        replaced = [PLACEHOLDERS.get(word, word) for word in words]
        replaced = [str(runs / "scene") if word == "RUN" else word for word in replaced]
        replaced = [str(ROOT / word) if word.startswith(("assets/", "configs/")) else word for word in replaced]
        if "--loss" in replaced:
            replaced[replaced.index("--loss") + 1] = "splat_ssim.loss:photometric_loss"
        _, config = parse(replaced)
        assert config.steps is None or config.steps > 0
        return
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        tyro.cli(imported(function), args=["--help"])
    known = re.findall(r"--[\w.-]+", shown.getvalue())
    assert [option for option in option_names(words) if option not in known] == []


def has_option(source, option):
    """Whether a script has an option: for argparse, or as a parameter or field that tyro turns into an option."""
    field = re.escape(option.removeprefix("--").replace("-", "_"))
    return f'"{option}"' in source or re.search(rf"^\s+{field}: ", source, re.MULTILINE) is not None


def check_script(path, words, runs):
    """Checks a script: one of the console commands, or one with its own options in its source."""
    assert path.is_file(), f"{path} does not exist"
    source = path.read_text()
    called = re.search(r"from splat_ssim_commands import (\w+)", source)
    if called is not None:
        names = {entry.partition(":")[2]: name for name, entry in PROJECT["scripts"].items()}
        check_console(names[called[1]], words, runs)
        return
    missing = [option for option in option_names(words) if not has_option(source, option)]
    assert missing == [], f"{path.name} has no {missing}"


def check_pip(words):
    assert words[0] == "install", words
    rest, names = iter(words[1:]), []
    for word in rest:
        if word in ("--extra-index-url", "-c"):
            next(rest)
        elif word not in ("-e", "-q"):
            names.append(word)
    for name in names:
        if name.startswith("dist/"):
            continue
        extras = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", name)
        assert extras, f"{name!r}: splat_ssim cannot be installed by name before there is a release"
        for extra in (extras[1] or "").split(","):
            assert not extra or extra in PROJECT["optional-dependencies"], extra


def check_make(words):
    for word in words:
        if "=" in word:
            assert re.search(rf"\b{word.partition('=')[0]}\b", MAKEFILE), word
        else:
            assert re.search(rf"^{re.escape(word)}:", MAKEFILE, re.MULTILINE), f"the Makefile has no target {word}"


@pytest.mark.parametrize("command", list(all_commands()))
def test_command_exists_with_its_options(command, request):
    # Only commands on a finished run need the trained runs.
    runs = request.getfixturevalue("runs") if "RUN" in command else None
    check_command(command, runs)


def check_command(command, runs=None):
    words = [
        word for word in shlex.split(command) if not re.fullmatch(r"[A-Z_]+=\S*", word) or command.startswith("make")
    ]
    first, rest = words[0], words[1:]
    if first == "make":
        check_make(rest)
    elif first == "pip":
        check_pip(rest)
    elif first.startswith("splat-"):
        assert first in PROJECT["scripts"]
        check_console(first, rest, runs)
    elif rest[0] == "-m":
        if rest[1] == "pip":
            check_pip(rest[2:])
        else:
            # Capitals stand for a name that the reader fills in, such as benchmarks.SUBJECT.
            module = ".".join(part for part in rest[1].split(".") if not part.isupper())
            assert importlib.util.find_spec(module) is not None, module
    else:
        check_script(ROOT / rest[0], rest[1:], runs)


def test_commands_of_a_finished_run_run(runs, tmp_path, monkeypatch, capsys):
    """The pages' commands on RUN, in their order: evaluate, draw, rebuild a volume, compare."""
    monkeypatch.chdir(tmp_path)
    for line in (
        f"scripts/eval.py {runs / 'scene'}",
        f"scripts/render.py {runs / 'scene'} --views orbit --frames 2",
        f"scripts/voxelize.py {runs / 'volume' / 'gaussians.quantized'} out.nii.gz",
        f"scripts/compare.py {ROOT / 'assets/brain_mri/T1.nii.gz'} out.nii.gz --map map.nii.gz",
        "scripts/draw_layout.py --check",
    ):
        script, *words = line.split()
        monkeypatch.setattr(sys, "argv", [script, *words])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as ended:
            assert not ended.code, (line, ended.code)
    assert (tmp_path / "map.nii.gz").stat().st_size > 1000
    assert "psnr" in capsys.readouterr().out


def test_commands_are_found_and_wrong_ones_refused():
    page = "Text `make docs`.\n\n```console\npip install .\n```\n\n    python scripts/train.py --steps 9  # short\n"
    assert commands_of(page, is_markdown=True) == ["pip install .", "python scripts/train.py --steps 9", "make docs"]
    for wrong in (
        "make nothing",
        "pip install splat_ssim",
        'pip install ".[nothing]"',
        "python scripts/compare.py A B --nothing 1",
        "python scripts/nothing.py",
        "python scripts/draw_layout.py --nothing",
    ):
        with pytest.raises(AssertionError):
            check_command(wrong)
    with pytest.raises(SystemExit):
        check_console("splat-train", ["--nothing", "1"], None)


# --- code on the pages


def names():
    generator = torch.Generator().manual_seed(0)
    render = torch.rand(1, 3, 32, 32, generator=generator).requires_grad_()
    truth = (render.detach() + 0.1 * torch.rand(1, 3, 32, 32, generator=generator)).clamp(0, 1)
    scan = torch.rand(1, 1, 14, 14, 14, generator=generator).requires_grad_()
    target = (scan.detach() + 0.1 * torch.rand(1, 1, 14, 14, 14, generator=generator)).clamp(0, 1)
    return {"render": render, "truth": truth, "scan": scan, "target": target}


def blocks(path):
    return [code for language, code in FENCE.findall(path.read_text()) if language == "python"]


@pytest.mark.parametrize("name", ["index.md", "start/loss.md", "start/scenes.md", "start/volumes.md"])
def test_code_of_a_page_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = names()
    found = blocks(DOCS / name)
    assert found
    for code in found:
        exec(code.replace('"assets/', f'"{ROOT}/assets/'), given)
    assert set(given) & {"loss", "trained", "field"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_code_is_python_and_imports_what_exists(path):
    for code in blocks(path):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("splat_ssim"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def drop_in_sections():
    text = (DOCS / "reference" / "drop_ins.md").read_text()
    for section in text.split("\n## ")[1:]:
        yield pytest.param(section.partition("\n")[0], [c for n, c in FENCE.findall(section) if n == "python"])


SECTIONS = [pytest.param(*param.values, id=param.values[0]) for param in drop_in_sections()]


@pytest.mark.parametrize("package,codes", SECTIONS)
def test_after_a_drop_in_the_number_is_the_packages(package, codes):
    def value(code):
        given = names()
        exec(code, given)
        return float(torch.as_tensor(given.get("loss", given.get("score"))).detach())

    before, *after = codes
    values = [value(code) for code in after]
    assert values and all(0.001 < one < 0.999 and abs(one - values[0]) < 1e-6 for one in values)
    try:
        expected = value(before)
    except ImportError:
        # fused-ssim and fussim need a GPU, piq its torchvision, gsplat.losses a gsplat newer than 1.5.3.
        assert package in ("fused-ssim", "fussim", "piq", "gsplat", "MONAI")
        return
    assert abs(values[0] - expected) < 2e-6


def test_drop_ins_answer_for_every_package():
    # The modules of splat_ssim.compat, by the names of their packages.
    packages = {path.stem.removesuffix("_0_8") for path in (ROOT / "splat_ssim" / "compat").glob("[a-z]*.py")}
    named = {param.values[0].lower().replace("-", "_").replace("scikit_image", "skimage") for param in SECTIONS}
    assert packages - {"fused_ssim3d", "gsplat_rendering"} == named  # gsplat_rendering is in theirs.md
    try:
        exec(blocks(DOCS / "reference" / "drop_ins.md")[0], {})
        import fused_ssim

        assert fused_ssim.fused_ssim.__module__ == "splat_ssim.compat.fused_ssim"
    finally:
        splat_ssim.compat.uninstall()


# --- names, links, pictures


def test_every_public_name_is_on_a_page(tmp_path):
    documented = set(api_pages.write(tmp_path))
    for name in api_pages.modules():
        page = (tmp_path / f"{name}.rst").read_text()
        for public in importlib.import_module(name).__all__:
            assert f"{name}.{public}" in documented
            assert re.search(rf"(autoclass|autofunction):: {name}.{public}$|py:data:: {public}$", page, re.MULTILINE)
    assert {"splat_ssim.ssim", "splat_ssim.volume.fit", "splat_ssim.loss.photometric_loss"} <= documented


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_links_lead_to_files(path):
    for place in re.findall(r"\]\(([^)\s#]+)[^)]*\)", path.read_text()):
        if re.match(r"https?:|mailto:", place):
            continue
        target = DOCS / place.lstrip("/") if place.startswith("/") else (path.parent / place)
        target = target.resolve()
        if "generated" in target.parts:
            # Gallery pages, figures and kernel pictures are made by `make docs`, which fails if one is missing.
            if "gallery" in target.parts:
                assert (DOCS / "gallery" / target.name).with_suffix(".py").exists(), place
            continue
        assert target.exists(), f"{path.name}: {place}"


def test_broken_links_of_built_pages_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="sub/b.html#there">b</a><a href="https://x.org/y">x</a>'
    )
    (tmp_path / "sub" / "b.html").write_text('<p id="there"><a href="../a.html#top">a</a><a href="#there">here</a></p>')
    assert link_check.broken_links(tmp_path) == []
    (tmp_path / "sub" / "b.html").write_text(
        '<a href="../a.html#nothing">a</a><img src="c.png"><a href="#there">here</a>'
    )
    broken = link_check.broken_links(tmp_path)
    assert [line.partition(" for ")[2] for line in broken] == [
        "sub/b.html#there",
        "../a.html#nothing",
        "c.png",
        "#there",
    ]


def test_no_page_installs_by_name():
    for path in PAGES:
        assert not re.search(r"pip install [\"']?splat[_-]ssim", path.read_text()), path


def test_prose_wraps_at_100_columns():
    for path in PAGES:
        text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for line in text.splitlines():
            is_table_code_or_link = line.startswith(("|", "    ", "<", "![")) or re.fullmatch(
                r"\S*\]\(\S+\)\S*", line.strip()
            )
            assert len(line) <= 100 or is_table_code_or_link, f"{path.relative_to(ROOT)}: {line}"


def test_gallery_scripts_have_titles_and_names_that_sort():
    assert len(GALLERY) >= 8
    pattern = re.search(r'else r"(plot_[^"]+)"', (DOCS / "conf.py").read_text())[1]
    for path in GALLERY:
        title, underline, *_ = ast.get_docstring(ast.parse(path.read_text())).splitlines()
        assert len(underline) >= len(title) and set(underline) == {"="}
        assert re.match(r"plot_\d+_", path.name)
        assert bool(re.search(pattern, path.name)) == ("(long)" not in title)


def test_layout_is_up_to_date():
    assert draw_layout.main(["--check"]) == 0, "run python scripts/draw_layout.py"
    # No arrow points up: every package stands above those that it imports.
    graph = draw_layout.imports()
    height = draw_layout.levels(graph)
    assert all(height[name] > height[other] for name, others in graph.items() for other in others)
    assert "compat" in graph and "losses" in graph["scene"] and "scene" not in graph["trainer"]


def test_kernel_pictures_follow_the_code():
    # The sizes that docs/design.md and the comments of csrc state.
    assert kernel_pictures.constant("cpu/ssim_passes.h", "kRows") == 8
    assert kernel_pictures.constant("cuda/fused2d.h", "kFusedThreads") == 256
    with pytest.raises(ValueError, match="required a constant kNothing"):
        kernel_pictures.constant("cpu/ssim_passes.h", "kNothing")
    assert kernel_pictures.image_cut(3, 1080, 1920) == (3, 2)
    for depth in (1, 8, 31, 64, 200):
        steps, ring = kernel_pictures.volume_schedule(depth)
        assert sorted(first for gradient, first in steps if gradient) == list(range(0, depth, 8))
        assert sorted(first for gradient, first in steps if not gradient) == list(range(0, depth, 8))
        written = 0
        for gradient, first in steps:
            if gradient:
                # The rows that it reads have been written and not yet overwritten.
                last = min(min(first + 8, depth) + kernel_pictures.RADIUS, depth)
                assert last <= written and max(0, first - kernel_pictures.RADIUS) >= written - ring
            else:
                written = min(first + 8, depth)


def test_benchmark_pages_show_machine_commit_and_losses(tmp_path):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "new_figures.csv").write_text(
        "# By hand.\nname,size,mode,milliseconds,ratio,device,commit\n"
        "splat_ssim,8x8,forward,1.0,1,A CPU,abc-dirty\npeer,8x8,forward,0.5,0.5,A CPU,abc-dirty\n"
        "peer|two,9x9,forward,2.0,2.0,A CPU,def\n"
    )
    benchmark_pages.write(tmp_path, tmp_path / "out")
    page = (tmp_path / "out" / "new_figures.md").read_text()
    assert page.startswith("# New figures\n") and "By hand." in page
    assert "A CPU" in page and "`abc-dirty`, `def`" in page and "not committed" in page
    assert "In 1 of these 2 a peer is faster" in page and "peer\\|two" in page
    assert "1 of 2 sizes" in (tmp_path / "out" / "overview.txt").read_text()


def test_benchmark_pages_are_of_every_file(tmp_path):
    stems = {path.stem for path in (ROOT / "benchmarks").rglob("*.csv")}
    found = benchmark_pages.write(ROOT, tmp_path)
    assert {one.path.stem for one in found} == stems and len(stems) > 10
    for one in found:
        page = (tmp_path / f"{one.path.stem}.md").read_text()
        assert page.count("\n|") >= len(one.rows)
        assert all(commit in page for commit in one.values("commit"))


def test_the_trees_of_pages_name_pages_that_exist():
    text = (DOCS / "index.md").read_text()
    entries = [
        line for _, code in re.findall(r"```\{(toctree)\}\n(.*?)```", text, re.DOTALL) for line in code.splitlines()
    ]
    named = [line for line in entries if line and not line.startswith((":", "generated")) and line != "*"]
    assert all((DOCS / f"{name}.md").exists() for name in named)
    # The glob only covers pages directly in docs/. Those in its folders are named.
    rest = {str(path.relative_to(DOCS).with_suffix("")) for path in PAGES if path.parent != DOCS}
    assert rest == set(named)
