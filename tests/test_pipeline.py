"""Names to ids, options, and that a picture depends on nothing but its latents and its class."""

from pathlib import Path
from typing import Any, cast

import accelerate
import numpy as np
import pytest
import torch
from common import seeded, tiny_generator
from PIL import Image
from torch import Tensor

from biggan_hf import BigGANModel, BigGANPipeline
from biggan_hf.images import to_uint8


# As in ImageNet: synonyms, two cranes, and a label that is a synonym in another.
LABELS = {
    0: "tench, Tinca tinca",
    1: "crane",
    2: "golden retriever",
    3: "crane",
    4: "maillot",
    5: "maillot, tank suit",
}
Z_DIM = 16


def tiny_model(**overrides: Any) -> BigGANModel:
    return tiny_generator(**{"id2label": LABELS, **overrides})


@pytest.fixture(scope="module")
def pipe() -> BigGANPipeline:
    return BigGANPipeline(tiny_model())


@pytest.fixture(scope="module")
def unconditional() -> BigGANPipeline:
    return BigGANPipeline(tiny_model(id2label=None, num_labels=0))


def tensors(pipe: BigGANPipeline, *args: Any, **kwargs: Any) -> Tensor:
    return pipe(*args, **kwargs, output_type="pt", progress_bar=False).images


# Names


def test_labels_are_the_unambiguous_synonyms(pipe: BigGANPipeline) -> None:
    assert pipe.labels == {"tench": 0, "Tinca tinca": 0, "golden retriever": 2, "tank suit": 5}


@pytest.mark.parametrize(
    ("names", "label_ids"),
    [
        ("tench", [0]),
        (["tinca TINCA"], [0]),
        (["  Golden  Retriever "], [2]),
        ("maillot, tank suit", [5]),
        (["tank suit", "tench, Tinca tinca", "golden retriever"], [5, 0, 2]),
    ],
)
def test_names_are_found(pipe: BigGANPipeline, names: str | list[str], label_ids: list[int]) -> None:
    assert pipe.get_label_ids(names) == label_ids


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("golden retreiver", "'golden retreiver'.*closest.*'golden retriever'"),
        ("qqq", "'qqq'.*0 to 5"),
        ("Crane", r"'Crane'.* 1 \('.*\) and 3 \('"),
        ("maillot", r"'maillot'.* 4 \('.*\) and 5 \('"),
    ],
)
def test_unknown_and_ambiguous_names_bring_those_that_may_be_meant(
    pipe: BigGANPipeline, name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pipe.get_label_ids(["tench", name])


# What is generated


@pytest.mark.parametrize(
    ("class_labels", "expected"),
    [
        (2, [2, 2]),
        ("golden retriever", [2, 2]),
        ([3, "tench"], [3, 3, 0, 0]),
        (torch.tensor([1, 0]), [1, 1, 0, 0]),
        (torch.tensor(4), [4, 4]),
        (np.array([1, 0]), [1, 1, 0, 0]),
    ],
)
def test_images_follow_the_classes_one_after_the_other(
    pipe: BigGANPipeline, class_labels: Any, expected: list[int]
) -> None:
    latents = torch.randn(len(expected), Z_DIM, generator=seeded(0))
    output = pipe(class_labels, num_images_per_prompt=2, latents=latents, output_type="pt", progress_bar=False)
    assert output.class_labels.tolist() == expected
    assert torch.equal(output.latents, latents)
    alone = [pipe.model(latents[i : i + 1], class_labels=torch.tensor([c])).images for i, c in enumerate(expected)]
    torch.testing.assert_close(output.images, (torch.cat(alone) + 1) / 2, atol=1e-5, rtol=0)


def test_the_images_are_those_of_model_sample(pipe: BigGANPipeline) -> None:
    for truncation, mode in [(None, None), (0.5, "resample"), (0.5, "scale")]:
        options: Any = {"truncation": truncation, "truncation_mode": mode}
        images = tensors(pipe, [2, 0], num_images_per_prompt=3, generator=seeded(1), **options)
        sampled = pipe.model.sample([2, 0], 3, generator=seeded(1), **options)
        torch.testing.assert_close(images, (sampled + 1) / 2, atol=1e-5, rtol=0)


@pytest.mark.parametrize("classes", [{}, {"id2label": None, "num_labels": 0}])
def test_truncation_reaches_the_latents_and_the_standing_statistics(classes: dict[str, Any]) -> None:
    pipe = BigGANPipeline(tiny_model(standing_truncations=[0.5, 1.0], **classes))
    label = 0 if pipe.id2label else None
    for name, buffer in pipe.model.named_buffers():
        if name.endswith("standing_var"):
            buffer[1] = 4.0
    latents = pipe(label, truncation=0.5, num_images_per_prompt=20, progress_bar=False).latents
    assert 0.4 < latents.abs().max() <= 0.5
    at_half, at_one = (tensors(pipe, label, latents=latents[:1], truncation=t) for t in (0.5, 1.0))
    assert not torch.allclose(at_half, at_one, atol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_images_do_not_depend_on_the_batch_size(pipe: BigGANPipeline, batch_size: int) -> None:
    one_by_one, together = (
        tensors(pipe, ["tench", 2], num_images_per_prompt=3, batch_size=size, generator=seeded(0))
        for size in (batch_size, 6)
    )
    torch.testing.assert_close(one_by_one, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("classes", "number"), [(torch.tensor([2, 2, 2]), 1), (None, 3)])
def test_with_a_generator_each_an_image_does_not_depend_on_its_place(
    pipe: BigGANPipeline, classes: Tensor | None, number: int
) -> None:
    forth, back = (
        tensors(pipe, classes, num_images_per_prompt=number, batch_size=2, generator=[seeded(i) for i in seeds])
        for seeds in ((1, 2, 3), (3, 2, 1))
    )
    torch.testing.assert_close(forth, back.flip(0), atol=1e-5, rtol=0)
    assert not torch.allclose(forth[0], forth[1], atol=1e-2)


def test_random_classes_are_drawn_from_the_generator(pipe: BigGANPipeline) -> None:
    first, second = (pipe(num_images_per_prompt=40, generator=seeded(0), progress_bar=False) for _ in range(2))
    assert set(first.class_labels.tolist()) == set(range(6))
    assert torch.equal(first.class_labels, second.class_labels)
    assert torch.equal(first.latents, second.latents)


def test_an_unconditional_model(unconditional: BigGANPipeline) -> None:
    output = unconditional(num_images_per_prompt=5, batch_size=2, generator=seeded(0), progress_bar=False)
    assert len(output.images) == 5 and output.class_labels is None
    assert unconditional.labels == {}
    for label in (0, "tench"):
        with pytest.raises(ValueError, match="unconditional"):
            unconditional(label)


# Mixtures and embeddings


def test_a_mixture_is_the_weighted_sum_of_embeddings(pipe: BigGANPipeline) -> None:
    latents = torch.randn(2, Z_DIM, generator=seeded(0))
    mixture: Any = {"golden retriever": 0.7, 3: 0.2, "Tinca tinca": 0.05, "tench": 0.05}
    output = pipe([mixture, "tench"], latents=latents, output_type="pt", progress_bar=False)
    assert output.class_labels is None
    table = pipe.model.get_parameter("class_embedding.weight").detach()
    embeddings = torch.stack([0.7 * table[2] + 0.2 * table[3] + 0.1 * table[0], table[0]])
    torch.testing.assert_close(pipe.embed_classes([mixture, "tench"]), embeddings)
    expected = (pipe.model(latents, class_embeddings=embeddings).images + 1) / 2
    torch.testing.assert_close(output.images, expected, atol=1e-5, rtol=0)
    given = tensors(pipe, latents=latents, class_embeddings=embeddings)
    torch.testing.assert_close(given, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("mixture", "weights"),
    [
        ({0: 0.333333333, 1: 0.333333333, 2: 0.333333333}, [1 / 3, 1 / 3, 1 / 3, 0, 0, 0]),  # one but for rounding
        ({"tench": 1.5, 2: -0.5}, [1.5, 0, -0.5, 0, 0, 0]),  # beyond a class
        ({2: 1.0, 0: 0.0}, [0, 0, 1, 0, 0, 0]),
    ],
)
def test_mixtures(pipe: BigGANPipeline, mixture: Any, weights: list[float]) -> None:
    embedding = pipe.embed_classes(mixture)
    table = pipe.model.get_parameter("class_embedding.weight").detach()
    torch.testing.assert_close(embedding, torch.tensor([weights], dtype=table.dtype) @ table)
    images = tensors(pipe, mixture, generator=seeded(0))
    given = tensors(pipe, class_embeddings=embedding, generator=seeded(0))
    torch.testing.assert_close(images, given, atol=1e-5, rtol=0)


def test_all_of_one_class_is_that_class(pipe: BigGANPipeline) -> None:
    assert pipe({2: 1.0}, progress_bar=False).class_labels.tolist() == [2]


def test_arrays_and_numbers_of_numpy(pipe: BigGANPipeline) -> None:
    latents = torch.randn(4, Z_DIM, generator=seeded(0))
    expected = tensors(pipe, [1, 2], num_images_per_prompt=2, latents=latents)
    counts: Any = {"num_images_per_prompt": np.int64(2), "batch_size": np.int32(3)}
    for array in (latents.numpy(), latents.double().numpy()):
        torch.testing.assert_close(tensors(pipe, [1, 2], latents=array, **counts), expected, atol=1e-5, rtol=0)
    zeros = pipe(1, latents=np.zeros((1, Z_DIM), dtype=np.int64), progress_bar=False)
    assert torch.equal(zeros.latents, torch.zeros(1, Z_DIM)) and zeros.latents.dtype == torch.float32
    embeddings = pipe.embed_classes([1, 2]).numpy()
    images = tensors(pipe, class_embeddings=embeddings, latents=latents, **counts)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(pipe.embed_classes(torch.tensor(2)), torch.from_numpy(embeddings[1:]))


def test_mixtures_without_a_shared_embedding_are_weights() -> None:
    pipe = BigGANPipeline(tiny_model(shared_class_embedding=False, hierarchical_latents=False))
    assert pipe.embed_classes([{1: 0.25, 2: 0.75}]).tolist() == [[0, 0.25, 0.75, 0, 0, 0]]
    between = tensors(pipe, {1: 0.25, 2: 0.75}, generator=seeded(0))
    ends = [tensors(pipe, label, generator=seeded(0)) for label in (1, 2)]
    assert all(not torch.allclose(between, end, atol=1e-3) for end in ends)


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ({0: 0.7, 2: 0.2}, r"must sum to 1, got \{0: 0.7, 2: 0.2\}"),
        ({0: 0.5, 2: 0.49999}, "must sum to 1"),
        ({}, "must sum to 1"),
        ({0: float("nan"), 2: 1.0}, "weight of class 0 must be a number, got nan"),
        ({0: "half", 2: 0.5}, "weight of class 0 must be a number, got 'half'"),
        ({"goldfish": 0.5, "tench": 0.5}, "unknown class name 'goldfish'"),
        ({0: 0.5, 6: 0.5}, "6 is outside 0 to 5"),
    ],
)
def test_bad_mixtures(pipe: BigGANPipeline, mixture: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe([0, mixture])


# Memory


def out_of_memory_beyond(model: BigGANModel, most: int, error: Exception, sizes: list[int]) -> Any:
    """Makes a forward of more images than that fail as torch does where memory is short; notes the sizes tried."""

    def allocate(_: Any, arguments: tuple[Any, ...]) -> None:
        sizes.append(len(arguments[0]))
        if sizes[-1] > most:
            raise error

    return model.register_forward_pre_hook(allocate)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA ran short"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("could not create a primitive"),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not execute a primitive"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(pipe: BigGANPipeline, error: Exception) -> None:
    expected = tensors(pipe, [0, 2], num_images_per_prompt=5, generator=seeded(0))
    sizes: list[int] = []
    with out_of_memory_beyond(pipe.model, 3, error, sizes):
        images = tensors(pipe, [0, 2], num_images_per_prompt=5, generator=seeded(0))
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (torch.OutOfMemoryError(), MemoryError, "one image of 32×32 does not fit the memory of cpu"),
        (RuntimeError("something else"), RuntimeError, "something else"),
    ],
)
def test_what_no_smaller_batch_helps(
    pipe: BigGANPipeline, raised: Exception, expected: type[Exception], message: str
) -> None:
    with out_of_memory_beyond(pipe.model, 0, raised, []), pytest.raises(expected, match=message):
        tensors(pipe, 0, num_images_per_prompt=3)


@pytest.mark.parametrize(("batch_size", "expected"), [(None, [64, 6]), (32, [32, 32, 6])])
def test_sizes_of_batches(pipe: BigGANPipeline, batch_size: int | None, expected: list[int]) -> None:
    sizes: list[int] = []
    with out_of_memory_beyond(pipe.model, 100, RuntimeError(), sizes):
        tensors(pipe, 0, num_images_per_prompt=70, batch_size=batch_size)
    assert sizes == expected


# Compiled


@pytest.mark.parametrize("overrides", [{"id2label": None, "num_labels": 0}, {"standing_truncations": [0.5, 1.0]}])
def test_compiled_once_for_any_number_of_images(overrides: dict[str, Any]) -> None:
    torch._dynamo.reset()  # what was compiled before in this process
    plain, compiled = (BigGANPipeline(tiny_model(**overrides)) for _ in range(2))
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    assert compiled.compile(backend=backend) is compiled
    classes = [0, 2] if plain.id2label else None
    truncation = 0.7 if overrides.get("standing_truncations") else None
    options: Any = {"truncation": truncation, "batch_size": 3}
    for per_class in (4, 1, 3):  # 8, 2 and 6 images with classes
        images, expected = (
            tensors(pipe, classes, num_images_per_prompt=per_class, generator=seeded(1), **options)
            for pipe in (compiled, plain)
        )
        assert images.shape == expected.shape
        torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert len(graphs) == 1

    # The graph holds no copy of the weights.
    for pipe in (compiled, plain):
        with torch.no_grad():
            pipe.model.get_parameter("output_conv.weight").neg_()
    images, again = (tensors(pipe, classes, generator=seeded(1), **options) for pipe in (compiled, plain))
    torch.testing.assert_close(images, again, atol=1e-5, rtol=0)
    assert not torch.allclose(images[0], expected[0], atol=0.1) and len(graphs) == 1


def test_a_compiled_batch_without_a_size_is_a_power_of_two(pipe: BigGANPipeline) -> None:
    compiled = BigGANPipeline(tiny_model()).compile(backend="eager")
    sizes: list[int] = []
    with torch.nn.modules.module.register_module_forward_pre_hook(sizes_of(compiled, sizes)):
        for number in (1, 5, 70):
            images = tensors(compiled, 0, num_images_per_prompt=number, generator=seeded(0))
            expected = tensors(pipe, 0, num_images_per_prompt=number, generator=seeded(0))
            torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert sizes == [1, 8, 64, 64]


def sizes_of(pipe: BigGANPipeline, sizes: list[int]) -> Any:
    """A hook of all modules that notes how many images a pipeline's model makes at a time."""
    return lambda module, given: sizes.append(len(given[0])) if module is pipe.model else None


def test_a_compiled_batch_that_does_not_fit_is_halved(pipe: BigGANPipeline) -> None:
    compiled = BigGANPipeline(tiny_model()).compile(backend="eager")
    sizes: list[int] = []

    def allocate(module: Any, arguments: tuple[Any, ...]) -> None:
        if module is compiled.model:
            sizes.append(len(arguments[0]))
            if sizes[-1] > 3:
                raise MemoryError

    with torch.nn.modules.module.register_module_forward_pre_hook(allocate):
        images = tensors(compiled, 0, num_images_per_prompt=5, batch_size=4, generator=seeded(0))
    assert sizes == [4, 2, 2, 2]
    expected = tensors(pipe, 0, num_images_per_prompt=5, generator=seeded(0))
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)


# What comes out


def test_output_types_are_one_picture_in_four_forms(pipe: BigGANPipeline) -> None:
    forms = {
        form: pipe(2, num_images_per_prompt=3, generator=seeded(0), output_type=form, batch_size=2)
        for form in ("pil", "np", "pt", "uint8")
    }
    as_pt, as_np, as_pil, as_uint8 = (forms[form].images for form in ("pt", "np", "pil", "uint8"))
    assert as_pt.shape == (3, 3, 32, 32) and as_pt.dtype == torch.float32
    assert 0 <= as_pt.min() < 0.4 and 0.6 < as_pt.max() <= 1
    assert as_np.shape == (3, 32, 32, 3) and as_np.dtype == np.float32
    np.testing.assert_array_equal(as_np, as_pt.permute(0, 2, 3, 1).numpy())
    assert isinstance(as_pil, list) and all(isinstance(image, Image.Image) for image in as_pil)
    levels = to_uint8(pipe.model.sample(2, 3, generator=seeded(0))).permute(0, 2, 3, 1)
    assert as_uint8.dtype == np.uint8 and as_uint8.shape == (3, 32, 32, 3)
    np.testing.assert_array_equal(as_uint8, np.stack([np.asarray(image) for image in as_pil]))
    assert as_pil[0].mode == "RGB"
    assert np.abs(as_uint8.astype(int) - levels.numpy().astype(int)).max() <= 1  # a last bit may round


def test_a_grey_model_gives_grey_pictures() -> None:
    pipe = BigGANPipeline(tiny_model(num_channels=1))
    assert pipe(0, progress_bar=False).images[0].mode == "L"
    assert pipe(0, output_type="np", progress_bar=False).images.shape == (1, 32, 32, 1)


def test_return_dict_false_is_a_tuple_of_three(pipe: BigGANPipeline, unconditional: BigGANPipeline) -> None:
    output = pipe(2, return_dict=False, progress_bar=False)
    assert isinstance(output, tuple) and len(output) == 3
    images, labels, latents = output
    assert isinstance(images[0], Image.Image) and labels.tolist() == [2] and latents.shape == (1, Z_DIM)
    assert unconditional(return_dict=False, progress_bar=False)[1] is None


def test_the_progress_bar_can_be_silenced(pipe: BigGANPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipe(2, num_images_per_prompt=2, batch_size=1, progress_bar=False)
    assert capsys.readouterr().err == ""
    pipe(2, num_images_per_prompt=2, batch_size=1)
    assert "2/2" in capsys.readouterr().err


def test_saving_loading_and_casting(pipe: BigGANPipeline, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path / "model")
    loaded = BigGANPipeline.from_pretrained(tmp_path / "model")
    assert loaded.labels == pipe.labels and loaded.device == torch.device("cpu") and not loaded.model.training
    expected = tensors(pipe, 2, generator=seeded(0))
    torch.testing.assert_close(tensors(loaded, 2, generator=seeded(0)), expected, atol=1e-5, rtol=0)

    half = BigGANPipeline.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    half.save_pretrained(tmp_path / "half")
    for options, dtype in (
        ({}, torch.bfloat16),
        ({"precision": "fp32"}, torch.float32),
        ({"precision": "bf16", "dtype": "bfloat16"}, torch.bfloat16),
    ):
        again = BigGANPipeline.from_pretrained(tmp_path / "half", **cast(dict[str, Any], options))
        assert again.dtype == dtype and again.model.config.dtype == dtype
    with pytest.raises(ValueError, match=r"precision='bf16' computes in torch.bfloat16, got dtype=torch.float32"):
        BigGANPipeline.from_pretrained(tmp_path / "model", precision="bf16", dtype=torch.float32)
    assert loaded.to(torch.bfloat16) is loaded and loaded.dtype == torch.bfloat16
    images = tensors(half, 2, generator=seeded(0))
    assert images.dtype == torch.float32
    torch.testing.assert_close(images, expected, atol=0.1, rtol=0)


# Errors, before any work


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_labels": []}, ValueError, "empty"),
        ({"class_labels": 6}, ValueError, "6 is outside 0 to 5"),
        ({"class_labels": [0, -1]}, ValueError, "-1 is outside"),
        ({"class_labels": 10**30}, ValueError, f"{10**30} is outside 0 to 5"),
        ({"class_labels": 1.5}, TypeError, "1.5"),
        ({"class_labels": True}, TypeError, "True"),
        ({"class_labels": [None]}, TypeError, "None"),
        ({"class_labels": torch.tensor([0.5])}, ValueError, "float32"),
        ({"num_images_per_prompt": 0}, ValueError, "num_images_per_prompt.*0"),
        ({"num_images_per_prompt": 1.0}, ValueError, "num_images_per_prompt.*1.0"),
        ({"batch_size": 0}, ValueError, "batch_size.*0"),
        ({"truncation": 0.0}, ValueError, "truncation.*0.0"),
        ({"truncation": float("nan")}, ValueError, "truncation.*nan"),
        ({"truncation_mode": "clip"}, ValueError, "truncation_mode.*'clip'"),
        ({"truncation_mode": "clip", "latents": torch.zeros(1, Z_DIM)}, ValueError, "truncation_mode.*'clip'"),
        ({"output_type": "jpg"}, ValueError, "output_type.*pil, np, pt, uint8.*'jpg'"),
        ({"class_embeddings": torch.zeros(1, 6)}, ValueError, "class_labels and class_embeddings"),
        ({"class_labels": None, "class_embeddings": torch.zeros(8)}, ValueError, r"class_embeddings.*\(8,\)"),
        ({"class_labels": None, "class_embeddings": torch.zeros(2, 7)}, ValueError, r"\(2, 6\), got \(2, 7\)"),
        ({"latents": torch.zeros(2, Z_DIM)}, ValueError, r"\(1, 16\).*\(2, 16\)"),
        ({"latents": torch.zeros(1, 7)}, ValueError, r"\(1, 16\).*\(1, 7\)"),
        ({"latents": np.zeros((1, 7))}, ValueError, r"\(1, 16\).*\(1, 7\)"),
        ({"latents": "noise"}, ValueError, "latents must be a tensor or an array of numbers, got 'noise'"),
        ({"latents": torch.full((1, Z_DIM), torch.nan)}, ValueError, "latents hold numbers that are not finite"),
        ({"truncation": 1e300, "truncation_mode": "scale"}, ValueError, "latents hold numbers that are not finite"),
        ({"class_labels": None, "class_embeddings": np.full((1, 6), np.inf)}, ValueError, "embeddings.*not finite"),
        ({"num_images_per_prompt": 3, "generator": [seeded(0)] * 2}, ValueError, "3.*got 2"),
        ({"class_labels": None, "num_images_per_prompt": 3, "generator": [seeded(0)] * 2}, ValueError, "3.*got 2"),
        ({"generator": 0}, TypeError, "generator.*0"),
        ({"generator": [0]}, TypeError, "generator.*0"),
    ],
)
def test_bad_values_are_refused(
    pipe: BigGANPipeline, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pipe(**{"class_labels": 0, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": 0.7, "truncation_mode": "scale"}, "measured with truncation_mode='resample', got 'scale'"),
        ({"truncation": 0.4}, "truncation=0.4 is outside"),
        ({"truncation": 1.1}, "truncation=1.1 is outside"),
    ],
)
def test_a_call_that_fits_no_standing_statistics_draws_nothing(options: dict[str, Any], message: str) -> None:
    pipe, generator = BigGANPipeline(tiny_model(standing_truncations=[0.5, 1.0])), seeded(0)
    before = generator.get_state()
    with pytest.raises(ValueError, match=message):
        pipe(num_images_per_prompt=2, generator=generator, **options)
    assert torch.equal(generator.get_state(), before)
    pipe(truncation_mode="scale", progress_bar=False)  # without a truncation, the running statistics


def test_a_model_is_offloaded_as_a_whole(pipe: BigGANPipeline) -> None:
    offloaded, leaf_by_leaf = BigGANPipeline(tiny_model()), BigGANPipeline(tiny_model())
    accelerate.cpu_offload_with_hook(offloaded.model, torch.device("cpu"))
    torch.testing.assert_close(tensors(offloaded, 2, generator=seeded(0)), tensors(pipe, 2, generator=seeded(0)))
    accelerate.cpu_offload(leaf_by_leaf.model, torch.device("cpu"))
    for classes in (2, {0: 0.5, 2: 0.5}):
        with pytest.raises(ValueError, match="offloaded layer by layer.* accelerate.cpu_offload_with_hook"):
            tensors(leaf_by_leaf, classes)
    with pytest.raises(ValueError, match="offloaded layer by layer"):
        leaf_by_leaf.model.sample([2])
