import subprocess
import sys

import torch

from efficientsam3.data.augment import Augmentation, augment, augmentation_seed

IMAGE = torch.randint(0, 256, (3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_seeds_are_a_function_of_run_and_image_in_every_process() -> None:
    code = "from efficientsam3.data.augment import augmentation_seed; print(augmentation_seed(3, 'sa_7'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == augmentation_seed(3, "sa_7")
    assert len({augmentation_seed(s, f"sa_{i}") for s in range(3) for i in range(300)}) == 900
    assert all(0 <= augmentation_seed(0, f"sa_{i}") < 2**31 for i in range(300))


def test_off_by_default() -> None:
    assert torch.equal(augment(IMAGE, 5, Augmentation()), IMAGE)


def test_a_flip_mirrors_and_its_share_is_its_probability() -> None:
    always = augment(IMAGE, 5, Augmentation(hflip=1.0))
    assert torch.equal(always, IMAGE.flip(-1))
    flipped = sum(torch.equal(augment(IMAGE, seed, Augmentation(hflip=0.3)), IMAGE.flip(-1)) for seed in range(400))
    assert 90 < flipped < 150


def test_jitter_is_reproducible_and_differs_between_seeds() -> None:
    jitter = Augmentation(color_jitter=0.5)
    first = augment(IMAGE, 5, jitter)
    assert torch.equal(first, augment(IMAGE, 5, jitter))
    assert not torch.equal(first, augment(IMAGE, 6, jitter))
    assert first.dtype == torch.uint8


def test_jitter_does_not_change_which_images_are_flipped() -> None:
    for seed in range(20):
        plain = torch.equal(augment(IMAGE, seed, Augmentation(hflip=0.5)), IMAGE.flip(-1))
        tiny = augment(IMAGE, seed, Augmentation(hflip=0.5, color_jitter=1e-6)).int()
        closest = (tiny - (IMAGE.flip(-1) if plain else IMAGE).int()).abs().max()
        assert closest <= 3
