"""How fast a run goes, in images and in arithmetic."""

from __future__ import annotations

import dataclasses

from deit_jax.models.flops import TrainFlops


@dataclasses.dataclass(frozen=True)
class Speed:
    """What turns the time of a step into figures that compare across batches, devices and models."""

    batch_size: int  # global
    num_devices: int
    flops: TrainFlops  # of one training image
    peak_flops: float | None  # FLOP/s of one device at best; None where it is not known

    def metrics(self, seconds_per_step: float) -> dict[str, float]:
        """Named as in metrics.jsonl.

        images_per_second            of the global batch
        images_per_second_per_device
        model_tflops_per_second      10^12 model FLOP/s of one device, of student and teacher together
        mfu, mfu_teacher             model FLOPs utilisation, 0 to 1: that, and the teacher's part in it, of the peak rate; left
                                     out where the peak is not known. What is computed twice (remat) does not count.
        """
        images = self.batch_size / seconds_per_step / self.num_devices
        values = {
            "images_per_second": images * self.num_devices,
            "images_per_second_per_device": images,
            "model_tflops_per_second": images * self.flops.total / 1e12,
        }
        if self.peak_flops is not None:
            values["mfu"] = images * self.flops.total / self.peak_flops
            values["mfu_teacher"] = images * self.flops.teacher / self.peak_flops
        return values
