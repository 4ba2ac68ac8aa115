"""The layers of the package: no import goes to a higher layer, none is circular, and files and functions are short."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "splat_ssim"

#: The layers from the lowest up. A file may import from its own layer and from lower ones.
LAYERS = [
    ["_checks", "_files", "_importing", "_json", "_locks", "_moved", "_version", "errors", "options"],
    ["reference", "_maps"],
    ["ops"],
    ["_background", "functional"],
    ["loss", "modules"],
    ["registry", "__init__"],
    ["distributed", "optim", "ply", "render"],
    ["compat"],
    ["formats"],
    ["strategy"],
    ["trainer"],
    ["scene"],
    ["volume"],
    ["ct"],
    ["image", "comparison", "prepare", "__main__"],
]
#: The only drop-in that is not a loss. It replaces gsplat's renderer.
RENDERER = "compat.gsplat_rendering"
#: The only modules of volumes that may import from scenes.
DISTILLATION = {"volume.distill"}


def module_of(path):
    """Dotted name below the package, such as volume.io. A package's __init__ has the package's name."""
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


FILES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_typing(node):
    """Whether a statement is `if TYPE_CHECKING:`, whose imports never run."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(name, *, lazy):
    """The modules of this package that a file imports. With `lazy`, also those that only its functions import."""
    path = FILES[name]
    package = name if path.name == "__init__.py" and name != "__init__" else name.rpartition(".")[0]
    found, stack = set(), list(ast.parse(path.read_text()).body)
    while stack:
        node = stack.pop()
        if is_typing(node) or (not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            continue
        stack += list(ast.iter_child_nodes(node))
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names if alias.name.startswith("splat_ssim")]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".") if package and package != "__init__" else []
                above = above[: len(above) - (node.level - 1)]
                base = ".".join(["splat_ssim", *above, *([base] if base else [])])
            if base.split(".")[0] == "splat_ssim":
                targets = [f"{base}.{alias.name}" for alias in node.names]
        for target in targets:
            below = target.split(".")[1:]
            # An import may name an object in a module. The longest path that is a file is the module.
            while below and ".".join(below) not in FILES:
                below.pop()
            found.add(".".join(below) if below else "__init__")
    return found - {name}


def layer_of(name):
    room = name.split(".")[0]
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


def test_every_file_has_its_layer():
    rooms = {name.split(".")[0] for name in FILES}
    assert rooms - {"options", "_maps"} <= {room for layer in LAYERS for room in layer}


@pytest.mark.parametrize("name", FILES)
def test_no_import_runs_back_up(name):
    for target in imports_of(name, lazy=True):
        if name == "__init__" and target == "ply":
            continue  # load_ply and save_ply are imported on first use
        assert layer_of(target) <= layer_of(name), f"{name} imports {target}, which stands above it"


def test_no_circle_of_files():
    graph = {name: imports_of(name, lazy=False) for name in FILES}
    # Every import of a submodule first runs the packages' __init__ files, which re-export names.
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, " -> ".join([*open_[open_.index(name) :], name])
        if name in done:
            return
        open_.append(name)
        for target in sorted(graph[name]):
            visit(target)
        open_.pop()
        done.add(name)

    for name in graph:
        visit(name)


def reached(start):
    """Every file that these files import, directly or indirectly, including imports inside functions."""
    seen, stack = set(), list(start)
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            stack += imports_of(name, lazy=True)
    return seen


def rooms(names):
    return {name.split(".")[0] for name in names}


def members(room):
    return [name for name in FILES if name.split(".")[0] == room]


def test_strategies_know_no_trainer():
    assert not rooms(reached(members("strategy"))) & {"trainer", "scene", "volume", "image"}


def test_the_floor_knows_no_task():
    assert not rooms(reached(members("trainer"))) & {"scene", "volume", "image", "strategy", "render", "loss", "ops"}
    for name in members("trainer"):
        if name != "trainer._old":
            source = FILES[name].read_text()
            assert "Gaussian" not in source and "voxel" not in source, name


def test_volumes_and_scenes_meet_in_the_distillation_alone():
    for name in members("volume"):
        assert "scene" not in rooms(imports_of(name, lazy=True)) or name in DISTILLATION, name
    assert not rooms(reached(members("scene"))) & {"volume", "image"}


def test_the_loss_half_knows_none_of_it():
    half = [name for name in FILES if layer_of(name) <= layer_of("registry") and name != "__init__"]
    half += [name for name in members("compat") if name != RENDERER]
    above = {
        "render",
        "strategy",
        "optim",
        "ply",
        "formats",
        "trainer",
        "scene",
        "volume",
        "image",
        "distributed",
        "comparison",
        "prepare",
    }
    assert not rooms(reached(half)) & above


# --- without the packages of the rooms above

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {blocked!r}):
            raise ModuleNotFoundError(f"blocked: {{name}}")
sys.meta_path.insert(0, Block())
{program}
"""

TAMING = """
import torch
from splat_ssim.strategy import TamingStrategy
from splat_ssim.strategy.scoring import ViewStats
params = torch.nn.ParameterDict({"means": torch.randn(20, 3), "scales": torch.zeros(20, 3), "quats": torch.randn(20, 4),
                                 "opacities": torch.zeros(20)})
optimizers = {name: torch.optim.Adam([param]) for name, param in params.items()}
def views(count):
    ones = torch.ones(len(params["means"]))
    yield from [ViewStats(1.0, ones, ones, ones, ones, ones, ones)] * count
strategy = TamingStrategy(budget=30, score_views=views, refine_start_iter=0, refine_every=1, refine_stop_iter=4)
state = strategy.initialize_state()
for step in range(5):
    means2d = params["means"][None, :, :2] * 1
    info = {"means2d": means2d, "width": 9, "height": 9, "n_cameras": 1, "gaussian_ids": None,
            "radii": torch.ones(1, len(means2d[0]), 2)}
    strategy.step_pre_backward(params, optimizers, state, step, info)
    (means2d.sum() + sum(p.sum() for p in params.values())).backward()
    [optimizer.step() for optimizer in optimizers.values()]
    strategy.step_post_backward(params, optimizers, state, step, info)
print(len(params["means"]))
"""

VOXELS = """
import torch
from splat_ssim.volume import VoxelGrid, voxelize
print(voxelize(torch.ones(1, 3), torch.eye(4)[:1], torch.ones(1, 3), torch.ones(1), VoxelGrid.regular((4, 4, 4))).shape)
"""

METRICS = """
import torch
from splat_ssim.trainer.metrics import psnr
print(psnr(torch.ones(2), torch.ones(2)))
"""


@pytest.mark.parametrize(
    "program,blocked,told",
    [
        (TAMING, "tyro yaml imageio PIL splat_ssim.trainer splat_ssim.scene splat_ssim.volume", "30"),
        (VOXELS, "tyro yaml gsplat imageio PIL splat_ssim.scene", "torch.Size([1, 4, 4, 4])"),
        (METRICS, "tyro yaml gsplat imageio PIL numpy splat_ssim.scene splat_ssim.volume", "inf"),
    ],
)
def test_rooms_stand_without_those_above(program, blocked, told):
    source = BLOCK.format(blocked=blocked.split(), program=program)
    done = subprocess.run([sys.executable, "-c", source], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == told


# --- sizes

#: Files and functions of the kernels that are still too long. Each leaves the list when it is split.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()


def sources():
    return [path for folder in (PACKAGE, ROOT / "scripts", ROOT / "csrc") for path in sorted(folder.rglob("*.py"))]


def test_no_file_over_400_lines():
    long = {str(path.relative_to(ROOT)) for path in sources() if len(path.read_text().splitlines()) > 400}
    assert long <= LONG_FILES, sorted(long - LONG_FILES)


def test_no_function_over_80_lines():
    long = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body
                if ast.get_docstring(node) is not None:
                    body = body[1:]
                # The body, without signature and docstring.
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if lines > 80:
                    long.add(f"{path.relative_to(ROOT)}:{node.name}")
    assert long <= LONG_FUNCTIONS, sorted(long - LONG_FUNCTIONS)


#: Comments, literals and preprocessor lines of C++, in which braces do not count.
NOT_CODE = re.compile(
    r'R"\((?:.|\n)*?\)"|//[^\n]*|/\*(?:.|\n)*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\''
    r"|^[ \t]*#(?:\\\n|[^\n])*",
    re.MULTILINE,
)
#: Openings of braces that are not functions: namespaces, types and values.
NO_FUNCTION = re.compile(r"(?:template\s*<.*>\s*)?(?:typedef\s+)?(?:namespace|struct|class|union|enum|extern)\b|.*=$")


def cpp_functions(text):
    """Yields (line, number of lines, text before the brace) of every function, lambda and block of C++."""
    code = NOT_CODE.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    opened = []
    for place in re.finditer(r"[{}]", code):
        if place[0] == "{":
            opened.append(place.start())
            continue
        start = opened.pop()
        head = " ".join(re.split(r"[;{}]", code[:start])[-1].split())
        if not NO_FUNCTION.match(head):
            line = code.count("\n", 0, start) + 1
            yield line, code.count("\n", 0, place.start()) + 2 - line, head
    assert not opened, "braces do not match"


def test_no_cpp_function_over_80_lines():
    sources = [path for path in sorted((ROOT / "csrc").rglob("*")) if path.suffix in (".h", ".cpp", ".cu")]
    assert len(sources) > 40
    count, long = 0, []
    for path in sources:
        for line, lines, head in cpp_functions(path.read_text()):
            count += 1
            if lines > 80:
                long.append(f"{path.relative_to(ROOT)}:{line} {lines} lines: {head[-60:]}")
    assert count > 500
    assert long == []


@pytest.mark.parametrize(
    "source,lines",
    [
        ("int f(int a) {\n  // }\n  return a;\n}\n", [4]),
        ("namespace {\nstruct S {\n  S() : a{1} {\n    a = '}';\n  }\n  int a;\n};\n}  // namespace\n", [1, 3]),
        ("template <class T>\nvoid f(T t) {\n  auto g = [&] {\n    t();\n  };\n}\n", [3, 5]),
        ("const int table[] = {\n  1,\n  2,\n};\n", []),
    ],
)
def test_lengths_of_cpp_functions(source, lines):
    assert [found for _, found, _ in cpp_functions(source)] == lines
