"""Stage metrics: one Gaussian release of how well the federated segmenter does on these patients.

Of every patient a bounded vector: Dice of each tumour region, and whether the patient has it. They
are patients that the segmenter was trained on, so it flatters.
"""

from torch import Tensor

from medsynth_client.order import Order, Outcome
from medsynth_common.labels import segmenter_target
from medsynth_common.learning.dice import SCORES, score_vector
from medsynth_common.learning.segmenting import segment
from medsynth_common.learning.volumes import Volume
from medsynth_common.networks import build_segmenter
from medsynth_common.privacy.patients import poisson_sample, release_mean


def release_metrics(order: Order) -> Outcome:
    """Release the noisy mean of the sampled patients' score vectors."""
    mechanism = order.mechanism("metrics")
    segmenter = order.network("segmenter", build_segmenter).eval()
    dims = order.plan.networks.spatial_dims

    def scores(patient: Volume) -> Tensor:
        image = patient.image.to(order.device)
        found = segment(segmenter, image, crop=order.plan.crop, spatial_dims=dims).cpu()
        return score_vector(found, segmenter_target(patient.labels))

    chosen = poisson_sample(len(order.patients), mechanism.sampling_rate, order.randomness)
    mean = release_mean(
        (scores(order.patients[index]) for index in chosen),
        mechanism,
        expected_patients=mechanism.sampling_rate * order.declared,
        randomness=order.randomness,
        shape=(SCORES,),
        stand_in=lambda: scores(order.stand_in),
    )
    return Outcome(weights={}, own={"metrics.scores": mean.float()}, state=order.state)
