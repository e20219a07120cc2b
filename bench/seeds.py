"""Numbers that come once per training seed."""
import statistics


def spread(xs, **more):
    "Mean, standard deviation (none of a single seed) and each of them, to two decimals"
    xs = [round(x, 2) for x in xs]
    return dict(mean=round(statistics.mean(xs), 2), sd=round(statistics.stdev(xs), 2) if len(xs) > 1 else None, each=xs) | more


def differences(runs, better, worse, group='top1'):
    "Paired differences of two rows in points, with how many are above 0; nothing where no run has both"
    v = [100*(r['by'][better][group] - r['by'][worse][group]) for r in runs if better in r['by'] and worse in r['by']]
    return spread(v, wins=sum(x > 0 for x in v)) if v else {}
