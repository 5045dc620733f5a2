import copy

import pytest
import torch

from efficientsam3.models.gradient_checkpointing import enable_gradient_checkpointing
from efficientsam3.models.student import Student, StudentArchitecture
from efficientsam3.runtime.errors import UserError


@pytest.mark.parametrize("backbone", ["efficientvit_b0", "repvit_m0_9", "tiny_vit_5m"])
def test_gradients_and_statistics_are_those_of_the_plain_model(backbone: str) -> None:
    torch.manual_seed(0)
    plain = Student(StudentArchitecture(backbone, 8, 4, 64)).train()
    # Stochastic depth draws again in every forward pass.
    for module in plain.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    saving = copy.deepcopy(plain)
    enable_gradient_checkpointing(saving.backbone)
    pixels = torch.randn(2, 3, 64, 64)
    for model in (plain, saving):
        model(pixels).square().mean().backward()
    state = saving.state_dict()
    assert state.keys() == plain.state_dict().keys()
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=0, msg=key)
    gradients = dict(saving.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, msg=name)


def test_activations_are_recomputed() -> None:
    student = Student(StudentArchitecture("efficientvit_b0", 8, 4, 64)).train()
    enable_gradient_checkpointing(student.backbone)
    calls: list[int] = []
    student.backbone.stages_3.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    student(torch.randn(2, 3, 64, 64)).mean().backward()
    assert len(calls) == 2


def test_a_module_without_stages_is_refused() -> None:
    with pytest.raises(UserError, match="--use-checkpoint"):
        enable_gradient_checkpointing(torch.nn.Linear(1, 1))
