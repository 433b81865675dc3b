"""Stage metrics: one Gaussian release of how well the federated segmenter does on these patients.

Of every patient a bounded vector: Dice of each tumour region, and whether the patient has it. They
are patients that the segmenter was trained on, so it flatters.
"""

from medsynth_client.order import Order, Outcome
from medsynth_common.labels import segmenter_target
from medsynth_common.learning.dice import SCORES, score_vector
from medsynth_common.learning.segmenting import segment
from medsynth_common.networks import build_segmenter
from medsynth_common.privacy.patients import poisson_sample, release_mean


def release_metrics(order: Order) -> Outcome:
    """Release the noisy mean of the sampled patients' score vectors."""
    mechanism = order.mechanism("metrics")
    segmenter = order.network("segmenter", build_segmenter).eval()
    dims = order.plan.networks.spatial_dims
    vectors = []
    for index in poisson_sample(len(order.patients), mechanism.sampling_rate, order.randomness):
        patient = order.patients[index]
        image = patient.image.to(order.device)
        found = segment(segmenter, image, crop=order.plan.crop, spatial_dims=dims).cpu()
        vectors.append(score_vector(found, segmenter_target(patient.labels)))
    mean = release_mean(
        vectors,
        mechanism,
        expected_patients=mechanism.sampling_rate * order.declared,
        randomness=order.randomness,
        shape=(SCORES,),
    )
    return Outcome(weights={}, own={"metrics.scores": mean.float()}, state=order.state)
