"""What torch has compiled, kept in a folder: written whole, read where it fits, and never a stranger's."""

from pathlib import Path

import pytest
import torch
import torch._dynamo.utils
from accelerate import Accelerator
from training_runs import Capture, arguments, error_line, tiny

from biggan_hf.layers import linear
from biggan_hf.spectral_norm import iterate_in_training
from biggan_hf.training import TrainingArguments, main
from biggan_hf.training.compile_cache import CompileCache
from biggan_hf.training.players import build_players
from biggan_hf.training.steps import Latents, Objective, Pictures, discriminator_step, generator_step


CPU = torch.device("cpu")


def test_what_was_compiled_is_found_again(tmp_path: Path, capsys: Capture) -> None:
    cache = CompileCache(str(tmp_path / "cache"), CPU)
    assert "compiles all" in cache.found and not (tmp_path / "cache").exists()
    layer = linear(3, 2, 1e-6).train()
    iterate_in_training(layer)
    layer.compile(dynamic=False)
    layer(torch.ones(1, 3)).sum().backward()  # the division by σ is a function of autograd
    cache.keep()
    (path,) = (tmp_path / "cache").iterdir()  # nothing unfinished is left
    assert f"are now in {str(path)!r}" in capsys.readouterr().out
    assert {"inductor", "aot_autograd"} <= {kind for kind, _ in cache.known}

    again = CompileCache(str(tmp_path / "cache"), CPU)
    assert again.known == cache.known and again.found.startswith(f"{len(cache.known)} parts are there")
    again.keep()
    assert list((tmp_path / "cache").iterdir()) == [path]  # there is nothing new

    content = path.read_bytes()
    path.write_bytes(content[:-1])
    (tmp_path / "cache" / "torch-1.0-cpu-0.cache").write_bytes(b"")
    damaged = CompileCache(str(tmp_path / "cache"), CPU)
    assert not damaged.known and f"damaged and passed over: {path.name}" in damaged.found
    assert "1 files there are of another torch or device" in damaged.found
    damaged.keep()  # which mends it
    assert CompileCache(str(tmp_path / "cache"), CPU).known == cache.known

    full = CompileCache(str(tmp_path / "full"), CPU)
    (tmp_path / "full").write_text("")  # somebody has put a file there
    full.keep_once()
    assert "compile_cache: not written: " in capsys.readouterr().out and not full.known
    (tmp_path / "full").unlink()
    full.keep_once()  # not a second time
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--compile", "--compile_cache", "hub:user/model"], "from the Hub torch would run a stranger's"),
        (["--compile", "--compile_cache", "FILE"], "compile_cache must be a folder, got the file"),
        (["--compile_cache", "cache"], "needs compile: without it nothing is compiled"),
    ],
)
def test_folders_that_cannot_be(
    pictures: Path, tmp_path: Path, capsys: Capture, flags: list[str], expected: str
) -> None:
    (tmp_path / "file").write_text("")
    flags = [word.replace("FILE", str(tmp_path / "file")) for word in flags]
    assert expected in error_line(arguments(pictures, tmp_path / "model", *flags), capsys)
    assert not (tmp_path / "model" / "training_settings.json").exists()


def test_the_first_step_compiles_all_that_later_ones_run() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    config, args = tiny(num_labels=0), TrainingArguments(output_dir="out", per_device_batch_size=2)
    players, _ = build_players(Accelerator(), config, args, None, None)
    players.bare_generator.compile(dynamic=False, backend="eager")
    latents, pictures = Latents(torch.randn(2, config.z_dim), None), Pictures(torch.randn(2, 1, 32, 32), None)
    graphs = []
    for _ in range(2):
        discriminator_step(players, [(latents, pictures)] * 2, Objective())
        generator_step(players, [latents] * 2, Objective())
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # In both updates, of which one has gradients: in the first micro-batch, which takes a power iteration, and in
    # later ones.
    assert graphs == [4, 4] and not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow  # it compiles two small networks
def test_a_resumed_run_is_told_its_cache_anew(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    cache = ["--compile", "--compile_cache", str(tmp_path / "cache")]
    main(arguments(pictures, tmp_path / "model", *cache))
    said = capsys.readouterr().out
    assert said.index("first step") < said.index("compile_cache: ") and list((tmp_path / "cache").glob("*.cache"))
    before = sorted((tmp_path / "cache").iterdir())
    go_on = ["--output_dir", str(tmp_path / "model"), "--resume_from_checkpoint", "latest", "--max_train_steps", "3"]
    main(go_on)  # a settings file never names a cache
    assert "compiled " not in capsys.readouterr().out
    main([*go_on[:-1], "4", *cache])
    assert "parts are there, in" in capsys.readouterr().out
    assert sorted((tmp_path / "cache").iterdir()) == before
