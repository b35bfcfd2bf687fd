"""Partitions by class: sites see some classes more than others, or not at all."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np

from federation.data.partitions.drawing import ATTEMPTS, check_counts, cut, even_sizes, generator, joined
from federation.errors import PlanError

if TYPE_CHECKING:
    from federation.tensors.buffers import Array


def label_dirichlet(
    labels: Array, sites: int, *, alpha: float, seed: int, minimum: int | None = None, attempts: int = ATTEMPTS
) -> list[Array]:
    """Spread each class over the sites by a draw from Dir_K(α), as in arXiv:2102.02079.

    For each class p ~ Dir(α·1_K) is drawn, set to 0 for sites that already hold n/K examples or more, and renormalised;
    the class is cut by p. All is drawn again until every site has its minimum.

    Args:
        labels: class of each example, shape (n,).
        sites: number of sites, K.
        alpha: α; small: sites differ a lot; large: all alike.
        seed: decides the draw.
        minimum: examples a site has at least. None: the number of classes.
        attempts: draws after which it gives up.

    Returns:
        Sorted example numbers of each site.

    Raises:
        PlanError: α is not positive, fewer examples than sites, or the draws left some site with too few.
    """
    check_counts(len(labels), sites, "label_dirichlet")
    _check_alpha(alpha, "label_dirichlet")
    members = _members(labels)
    least = len(members) if minimum is None else minimum
    rng = generator(seed, "label_dirichlet")
    for _ in range(attempts):
        parts = _spread(members, sites, alpha, rng)
        if min(sum(map(len, pieces)) for pieces in parts) >= least:
            return [joined(pieces) for pieces in parts]
    raise PlanError(
        f"label_dirichlet({alpha:g}) gave some site fewer than {least} of {len(labels)} examples in {attempts} draws; "
        f"raise alpha, use fewer sites, or say how few are enough, such as dirichlet:{alpha:g},1"
    )


def _spread(members: list[Array], sites: int, alpha: float, rng: np.random.Generator) -> list[list[Array]]:
    fair = sum(map(len, members)) / sites
    parts: list[list[Array]] = [[] for _ in range(sites)]
    held = np.zeros(sites)
    for mine in members:
        shares = rng.dirichlet(np.full(sites, alpha)) * (held < fair)
        if not shares.sum() > 0:  # a tiny α gave everything to sites that are full
            shares = (held < fair).astype(float)
        ends = (np.cumsum(shares / shares.sum()) * len(mine)).astype(int)
        for site, piece in enumerate(np.split(rng.permutation(mine), ends[:-1])):
            parts[site].append(piece)
            held[site] += len(piece)
    return parts


def inner_dirichlet(labels: Array, sites: int, *, alpha: float, seed: int) -> list[Array]:
    """Give each site its own mix of classes, drawn from Dir_C(α), at equal sizes.

    The places of all sites are filled in random order: the class of a place is drawn from its site's mix, renormalised
    over the classes that are not used up. Source: the experiments of arXiv:2111.04263.

    Args:
        labels: class of each example, shape (n,).
        sites: number of sites, K.
        alpha: α; small: sites differ a lot; large: all alike.
        seed: decides the draw.

    Returns:
        Sorted example numbers of each site, in the original order of the examples.

    Raises:
        PlanError: fewer examples than sites, or α is not positive.
    """
    check_counts(len(labels), sites, "inner_dirichlet")
    _check_alpha(alpha, "inner_dirichlet")
    rng = generator(seed, "inner_dirichlet")
    members = [rng.permutation(mine) for mine in _members(labels)]
    mixes = rng.dirichlet(np.full(len(members), alpha), size=sites)
    places = rng.permutation(np.repeat(np.arange(sites), even_sizes(len(labels), sites)))
    drawn = _fill(places, mixes, np.array([len(mine) for mine in members]), rng.random(len(places)))
    examples = np.empty(len(places), dtype=np.int64)
    for number, mine in enumerate(members):
        examples[drawn == number] = mine
    return [np.sort(examples[places == site]) for site in range(sites)]


def _fill(places: Array, mixes: Array, left: Array, draws: Array) -> Array:
    """Return the class of each place; a class that is used up is drawn no more.

    A place's class depends on the places before it only through which classes are used up. So all are drawn at once,
    kept up to the first that would overdraw a class, and drawn again from there without it.
    """
    classes = np.empty(len(places), dtype=np.int64)
    start = 0
    while start < len(places):
        weights = mixes * (left > 0)
        # A site whose whole mix is used up takes what there is, by how much there is.
        weights = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, left)
        bounds = np.cumsum(weights, axis=1)
        sites = places[start:]
        drawn = np.argmax(bounds[sites] > (draws[start:] * bounds[sites, -1])[:, None], axis=1)
        stop = len(sites)
        for number in np.flatnonzero(left):
            found = np.flatnonzero(drawn == number)
            if len(found) > left[number]:
                stop = min(stop, int(found[left[number]]))
        classes[start : start + stop] = drawn[:stop]
        left = left - np.bincount(drawn[:stop], minlength=len(left))
        start += stop
    return classes


def shards(labels: Array, sites: int, *, per_site: int, seed: int, count: int | None = None) -> list[Array]:
    """Cut the examples, sorted by class, into shards and deal each site as many at random [McMahan et al. 2017].

    The more shards a site has, the more classes it sees: a higher `per_site` is the *milder* skew.

    Args:
        labels: class of each example, shape (n,).
        sites: number of sites, K.
        per_site: shards of a site, s. Not looked at if `count` is given.
        seed: decides the deal.
        count: number of shards, M; each site gets ⌊M/K⌋, and shards that are left over are dropped with a warning.
            None: K·s.

    Returns:
        Sorted example numbers of each site.

    Raises:
        PlanError: a site would get no shard, or there are more shards than examples.
    """
    made = sites * per_site if count is None else count
    each = made // max(sites, 1)
    if sites < 1 or each < 1 or made > len(labels):
        raise PlanError(f"shards cannot cut {len(labels)} examples into {made} shards for {sites} sites")
    if made % sites:
        warnings.warn(
            f"{made} shards among {sites} sites leave {made % sites} over; their examples are dropped", stacklevel=2
        )
    pieces = np.array_split(np.argsort(labels, kind="stable"), made)
    deal = generator(seed, "shards").permutation(made)
    return [joined([pieces[number] for number in deal[site * each : (site + 1) * each]]) for site in range(sites)]


def labels_per_site(labels: Array, sites: int, *, count: int, seed: int) -> list[Array]:
    """Give each site examples of so many classes only, as "#C = k" of arXiv:2102.02079.

    Site i holds class i mod C and `count` − 1 others drawn at random; a class is divided evenly among its holders.
    With fewer sites than classes some class may have no holder: its examples are dropped with a warning.

    Args:
        labels: class of each example, shape (n,).
        sites: number of sites, K.
        count: classes a site holds.
        seed: decides the draw.

    Returns:
        Sorted example numbers of each site.

    Raises:
        PlanError: there are not so many classes, or no site.
    """
    members = _members(labels)
    if sites < 1 or not 1 <= count <= len(members):
        raise PlanError(f"labels_per_site: {count} of {len(members)} classes at each of {sites} sites is not possible")
    rng = generator(seed, "labels_per_site")
    holders: list[list[int]] = [[] for _ in members]
    for site in range(sites):
        first = site % len(members)
        others = [number for number in range(len(members)) if number != first]
        for number in [first, *rng.choice(others, size=count - 1, replace=False).tolist()] if count > 1 else [first]:
            holders[number].append(site)
    unheld = sum(1 for sites_of in holders if not sites_of)
    if unheld:
        warnings.warn(f"{unheld} of {len(members)} classes are held by no site and dropped", stacklevel=2)
    parts: list[list[Array]] = [[np.empty(0, dtype=np.int64)] for _ in range(sites)]
    for mine, sites_of in zip(members, holders, strict=True):
        if sites_of:
            pieces = cut(rng.permutation(mine), even_sizes(len(mine), len(sites_of)))
            for site, piece in zip(sites_of, pieces, strict=True):
                parts[site].append(piece)
    return [joined(pieces) for pieces in parts]


def _members(labels: Array) -> list[Array]:
    """Return the examples of each class, in the order of the classes."""
    return [np.flatnonzero(labels == value) for value in np.unique(labels)]


def _check_alpha(alpha: float, scheme: str) -> None:
    if not alpha > 0:
        raise PlanError(f"{scheme}: alpha is {alpha}, expected more than 0")
