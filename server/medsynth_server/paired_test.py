"""Whether two segmenters differ over the same patients by more than chance."""

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def signed_rank(differences: NDArray[np.float64]) -> float:
    """Two-sided p of the signed-rank test (Wilcoxon 1945); 1 where nothing differs.

    Args:
        differences: of each patient: (patient,), at least one.

    """
    if not differences.any():
        return 1.0
    sizes = np.abs(differences)
    tied = len(np.unique(sizes)) < len(sizes) or not sizes.all()
    # The exact distribution is known without ties; with them scipy would try all signs, which
    # takes ten seconds at thirteen patients, for each of a table's many tests.
    method = "asymptotic" if tied else "auto"
    return float(stats.wilcoxon(differences, method=method).pvalue)
