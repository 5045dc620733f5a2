from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from efficientsam3.runtime.errors import UserError
from efficientsam3.sam3.decoders import OnnxDecoder, Sam3Decoder
from efficientsam3.sam3.predictor import Candidates, Predictor, Prompts, load_predictor
from efficientsam3.sam3.torch_calls import ask_tracker, tracker_features
from sam_decoder import CELLS, MASKS, SIDE, WIDTH, write_sam

CPU = torch.device("cpu")
REAL = Path(__file__).parents[4] / "shared" / "real_teacher" / "sam.onnx"
POINTS = torch.tensor([[[10.0, 20.0], [50.0, 30.0]], [[3.0, 60.0], [33.0, 31.5]], [[1.0, 2.0], [8.0, 40.0]]])
LABELS = torch.tensor([[1, 0], [1, 1], [0, 1]])
BOXES = torch.tensor([[5.0, 6.0, 40.0, 50.0], [0.0, 0.0, 64.0, 30.0], [30.0, 20.0, 35.0, 61.0]])
IMAGES = torch.tensor([0, 1, 0])


def no_points(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(count, 0, 2), torch.zeros(count, 0, dtype=torch.int64)


def asked(kind: str, scale: float = 1.0, cells: int = CELLS) -> Prompts:
    masks = 20 * torch.randn(3, 1, 4 * cells, 4 * cells, generator=torch.Generator().manual_seed(1))
    points, labels = (POINTS * scale, LABELS) if "points" in kind else no_points(3)
    return Prompts(IMAGES, points, labels, BOXES * scale if "box" in kind else None, masks if "mask" in kind else None)


def by_onnx(decoder: OnnxDecoder, embeddings: torch.Tensor, prompts: Prompts) -> Candidates:
    logits, ious = [], []
    for index, image in enumerate(prompts.images.tolist()):
        points = [*prompts.points[index], *(() if prompts.boxes is None else prompts.boxes[index].reshape(2, 2))]
        labels = [*prompts.labels[index].tolist(), *(() if prompts.boxes is None else (2, 3))]
        if prompts.boxes is None:
            points, labels = [*points, torch.zeros(2)], [*labels, -1]
        mask = None if prompts.masks is None else prompts.masks[index, 0].numpy()
        low, scores = decoder.answer(embeddings[image : image + 1].numpy(), torch.stack(points).numpy(), labels, mask)
        logits.append(torch.from_numpy(low))
        ious.append(torch.from_numpy(scores))
    return Candidates(torch.stack(logits), torch.stack(ious))


@pytest.fixture(scope="module")
def whole_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export that gives all candidates."""
    path = tmp_path_factory.mktemp("whole") / "sam.onnx"
    write_sam(path, single=False)
    return path


@pytest.mark.parametrize("kind", ["points", "box", "points and box", "points and mask", "box and mask"])
def test_all_candidates_are_those_of_onnx_runtime(whole_decoder: Path, kind: str) -> None:
    predictor = load_predictor(whole_decoder, CPU)
    assert (predictor.embed_dim, predictor.embed_size, predictor.preprocessing.image_size) == (WIDTH, CELLS, SIDE)
    embeddings = torch.randn(2, WIDTH, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    prompts = asked(kind)
    own = predictor(predictor.features(embeddings), prompts)
    assert own.logits.shape == (3, MASKS, 4 * CELLS, 4 * CELLS)
    expected = by_onnx(OnnxDecoder(whole_decoder), embeddings, prompts)
    assert torch.allclose(own.logits, expected.logits, atol=1e-4)
    assert torch.allclose(own.ious, expected.ious, atol=1e-4)


@pytest.mark.skipif(not REAL.is_file(), reason="needs shared/real_teacher, see CONTRIBUTING.md")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["points", "box", "points and box"])
def test_the_real_decoder_is_that_of_onnx_runtime(kind: str) -> None:
    predictor = load_predictor(REAL, CPU)
    embeddings = 0.1 * torch.randn(2, 256, 64, 64, generator=torch.Generator().manual_seed(0))
    prompts = asked(kind, predictor.preprocessing.image_size / SIDE)
    own = predictor(predictor.features(embeddings), prompts)
    expected = by_onnx(OnnxDecoder(REAL), embeddings, prompts)
    chosen = torch.full((3,), 0) if kind != "box" else 1 + own.ious[:, 1:].argmax(1)  # by the rule of SAM's export
    assert torch.allclose(
        own.logits[range(3), chosen], expected.logits[:, 0], atol=1e-4 * float(own.logits.abs().max())
    )
    assert torch.allclose(own.ious[range(3), chosen], expected.ious[:, 0], atol=1e-4)


@pytest.mark.parametrize("kind", ["points", "box", "points and box", "points and mask"])
def test_sam3_s_tracker_answers_as_transformers_own_forward(tiny_sam3_path: Path, kind: str) -> None:
    predictor = load_predictor(tiny_sam3_path, CPU)
    tracker = Sam3Decoder(tiny_sam3_path, CPU).tracker
    size = predictor.embed_size
    embeddings = torch.randn(2, predictor.embed_dim, size, size, generator=torch.Generator().manual_seed(0))
    prompts = asked(kind, cells=size)
    own = predictor(predictor.features(embeddings), prompts)
    for index, image in enumerate(IMAGES.tolist()):
        box = None if prompts.boxes is None else prompts.boxes[index]
        features = tracker_features(tracker, embeddings[image : image + 1])
        mask = None if prompts.masks is None else prompts.masks[index, 0]
        answer = ask_tracker(tracker, features, prompts.points[index], prompts.labels[index].tolist(), box, mask)
        assert torch.allclose(own.logits[index, 1:], answer.pred_masks[0, 0], atol=1e-4)
        assert torch.allclose(own.ious[index, 1:], answer.iou_scores[0, 0], atol=1e-5)


@pytest.mark.parametrize("kind", ["sam", "sam3"])
def test_gradients_to_the_embedding_are_those_of_finite_differences(
    sam_decoder: Path, tiny_sam3_path: Path, kind: str
) -> None:
    predictor: Predictor = load_predictor(sam_decoder if kind == "sam" else tiny_sam3_path, CPU).double()
    assert not any(parameter.requires_grad for parameter in predictor.parameters())
    generator = torch.Generator().manual_seed(0)
    shape = (2, predictor.embed_dim, predictor.embed_size, predictor.embed_size)
    embeddings = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    prompts = Prompts(IMAGES, POINTS.double(), LABELS, BOXES.double())
    weights: list[torch.Tensor] = []

    def total(embedding: torch.Tensor) -> torch.Tensor:
        answer = predictor(predictor.features(embedding), prompts)
        if not weights:
            weights.extend(
                torch.randn(part.shape, generator=generator, dtype=torch.float64)
                for part in (answer.logits, answer.ious)
            )
        return (answer.logits * weights[0]).sum() + (answer.ious * weights[1]).sum()

    (gradient,) = torch.autograd.grad(total(embeddings), embeddings)
    with torch.no_grad():
        for _ in range(3):
            direction = torch.randn(shape, generator=generator, dtype=torch.float64)
            step = 1e-5
            slope = (total(embeddings + step * direction) - total(embeddings - step * direction)) / (2 * step)
            assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_graphs_of_other_architectures_are_refused(tmp_path: Path, box_decoder: Path, sam_decoder: Path) -> None:
    with pytest.raises(UserError, match="no mask decoder of SAM's architecture"):
        load_predictor(box_decoder, CPU)
    model = onnx.load(sam_decoder)
    (norm,) = [item for item in model.graph.initializer if item.name.endswith("transformer.norm_final_attn.weight")]
    norm.name = "norm"
    for node in model.graph.node:
        node.input[:] = ["norm" if "norm_final_attn.weight" in name else name for name in node.input]
    onnx.save(model, tmp_path / "unnamed.onnx")
    with pytest.raises(UserError, match="1 missing, such as mask_decoder.transformer.layer_norm_final_attn.weight"):
        load_predictor(tmp_path / "unnamed.onnx", CPU)


def test_a_graph_that_answers_otherwise_is_refused(tmp_path: Path) -> None:
    write_sam(tmp_path / "other.onnx", activation=nn.ReLU())
    with pytest.raises(UserError, match="does not answer as SAM's architecture"):
        load_predictor(tmp_path / "other.onnx", CPU)
