"""Mean and covariance of the teacher's channels, measured on the first training images."""

import logging

import torch

from efficientsam3.data.loader import build_loader
from efficientsam3.data.preprocess import build_valid_mask
from efficientsam3.runtime.errors import UserError
from efficientsam3.runtime.logging import LOGGER_NAME
from efficientsam3.train.batches import with_records
from efficientsam3.train.plan import TrainPlan
from efficientsam3.train.targets import MEASURED_IMAGES

logger = logging.getLogger(LOGGER_NAME)


def measure_covariance(plan: TrainPlan) -> tuple[torch.Tensor, torch.Tensor]:
    """Over the valid cells of the first training images by id, computed on the CPU.

    Args:
        plan: of a training from a store.

    Returns:
        mean (D,) and covariance (D, D), float64.

    Raises:
        UserError: none of these images can be read.
    """
    manifest, cpu = plan.targets.manifest, torch.device("cpu")
    count = min(MEASURED_IMAGES, len(plan.train))
    logger.info("measuring the covariance of the teacher's channels on the first %d training images", count)
    images = torch.utils.data.Subset(plan.train, range(count))
    loader = build_loader(images, 1, plan.num_workers, plan.collate, cpu)
    dim = manifest.embed_dim
    cells, mean, m2 = 0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
    for batch in with_records(loader, plan.targets, cpu):
        valid = build_valid_mask(batch.content_sizes, manifest.preprocessing.image_size, manifest.embed_size)
        shown = valid & (batch.weights > 0)[:, None, None]
        values = plan.targets(batch, batch.pixels).permute(0, 2, 3, 1)[shown].double()  # [n, D]
        if not len(values):
            continue
        # Chan, Golub and LeVeque 1983, as `ChannelStatistics.merge`.
        own, before = values.mean(dim=0), cells
        cells += len(values)
        difference, centred = own - mean, values - own
        m2 += centred.T @ centred + torch.outer(difference, difference) * (before * len(values) / cells)
        mean += difference * (len(values) / cells)
    if not cells:
        raise UserError(
            f"None of the first {count} training images can be read, so there is no covariance to standardise by: see "
            "`efficientsam3 data check`."
        )
    return mean, m2 / cells
