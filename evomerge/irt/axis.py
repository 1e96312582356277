"""One line through the ability space along which a bank of any dimension is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.irt.bank import ItemBank
from evomerge.irt.responses import Floats


@dataclass(frozen=True)
class AbilityAxis:
    """The reference composite of a bank (Wang 1986; Reckase 2009, ch. 6), through the mean of the population.

    For one dimension it is the ability itself. Positions are in standard deviations of the calibration models.

    Attributes:
        bank: the bank.
        direction: shape `(D,)`: the change of theta that is one standard deviation along the axis.
    """

    bank: ItemBank
    direction: Floats

    @staticmethod
    def of(bank: ItemBank) -> AbilityAxis:
        """The leading eigenvector of `A'A` in units of the population, pointing to where the items get easier."""
        root = np.linalg.cholesky(bank.covariance)
        slopes = bank.slopes @ root
        _, vectors = np.linalg.eigh(slopes.T @ slopes)
        unit = vectors[:, -1]
        if float(np.sum(slopes @ unit)) < 0:
            unit = -unit
        return AbilityAxis(bank, root @ unit)

    def thetas(self, positions: Floats) -> Floats:
        """Positions of shape `(k,)` to abilities of shape `(k, D)`."""
        return self.bank.mean + positions[:, None] * self.direction

    def positions(self, theta: Floats) -> Floats:
        """Abilities of shape `(m, D)` to the nearest positions in the population's metric, shape `(m,)`."""
        inverse = np.linalg.inv(self.bank.covariance)
        out: Floats = (theta - self.bank.mean) @ inverse @ self.direction
        return out

    @property
    def slopes(self) -> Floats:
        """Shape `(n,)`: slopes of the items along the axis."""
        out: Floats = self.bank.slopes @ self.direction
        return out

    @property
    def difficulties(self) -> Floats:
        """Shape `(n,)`: where on the axis half of the answers are right (logistic items); NaN without a slope."""
        slopes = self.slopes
        flat = ~self.bank.fitted | (slopes <= 0)
        at_mean = self.bank.slopes @ self.bank.mean + self.bank.intercepts
        out: Floats = np.where(flat, np.nan, -at_mean / np.where(flat, 1.0, slopes))
        return out

    def information(self, positions: Floats) -> Floats:
        """Fisher information of all items together about the position, shape `(k,)`."""
        out: Floats = self.bank.weight(self.thetas(positions)) @ self.slopes**2
        return out
