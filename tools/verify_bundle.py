"""Check what a certificate of Suffice rests on. Needs Python 3.11 or newer, and nothing of Suffice.

BUNDLE is written by `suffice audit bundle`; FILE holds heads of the audit log that nobody who writes the log can write.
Exits with 0 if all holds, with 1 if something does not, with 2 if nobody can tell: no readable bundle, or no kept head.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import blake2b, sha256
from math import ceil, exp, floor, inf, isclose, lgamma, log, log1p
from pathlib import Path
from struct import pack
from typing import Any

BETS = [0.25, 0.45, 0.65, 0.85]  # fractions of the largest bet that cannot go bankrupt
PARTS = {0.25: 0.1, 0.5: 0.1, 0.75: 0.1, 1.0: 0.7}  # of delta, by the share of the requests on which a level may act
DAY_S, LATE_S, FINISH_RISK, JUDGE_RISK = 86_400, 3_600, 0.01, 0.005  # risks: of a bound on finishes, and on a judge
Line = dict[str, Any]
Wrong = Iterator[str]  # what is wrong, a sentence each
# JSON without NaN, Infinity or numbers that are too large for a float: they compare as equal to nothing.
READ = json.JSONDecoder(parse_constant=int, parse_float=lambda text: float(text) + 0 * int(float(text))).decode


class Bundle:
    def __init__(self, content: bytes) -> None:
        seal, parts = bytes(32), dict[str, list[Line]]()
        self.starts: list[Line] = []  # requests, and stretches without rows, in the order of start
        for text in content.splitlines(keepends=True):
            line = READ(text.decode())
            parts.setdefault(line["type"], []).append(line)
            if line["type"] in ("header", "request", "unrecorded"):
                seal = sha256(seal + text).digest()
                self.starts += [line] * (line["type"] != "header")
        self.seal, (self.header,), self.head = seal.hex(), parts["header"], parts["head"][0]["head"]
        if self.header["form"] != 4 or not 0 < self.header["n_levels"] <= 10_000:
            raise ValueError("its form is not known here, or its number of levels is out of range")
        self.requests, self.links = parts.get("request", []), parts["link"]
        self.rows = {line["seq"]: line for line in parts["row"]}
        self.bodies = {READ(row["told"])[1]: READ(row["kept"]) for row in parts["row"]}  # one a kind
        told = sorted((seq, READ(row["told"])[1], row["kept"]) for seq, row in self.rows.items())
        self.salts = [(seq, READ(kept)["salt"]) for seq, kind, kept in told if kind == "salt_published"]
        self.known_salts = {one["day"]: one["salt"] for _, one in self.salts[-1:]}  # each is the digest of the next
        for day in [one - n for one in self.known_salts for n in range(10_000)]:
            self.known_salts[day - 1] = sha256(bytes.fromhex(self.known_salts[day])).hexdigest()
        self.made, self.epoch = self.bodies["policy_published"]["publication"], self.bodies["epoch_began"]["epoch"]
        self.part = self.made.get("exposure", 1.0)  # of the requests: on the others the level does not act
        self.firsts = [line for line in self.requests if line.get("delivery", 1) == 1 and line["unit"]]
        self.window: Line = self.header["window"] or {"start": 1, "end": 1, "share": 1.0, "until": 0}
        self.least = self.window["share"] or inf  # none where shares follow the evidence: there all audits count alike
        self.end = min(self.window["end"] or inf, floor(self.window["until"]) + 1)
        self.promise, self.charges, self.n_levels = (self.header[name] for name in ("promise", "charges", "n_levels"))
        self.audits = [line for line in self.requests if self.is_audit(line)]
        self.counted = [line for line in self.audits if line["status"] != "no answer"]  # a stop cannot lose there
        finish = self.at_levels([[one["from_level"], one["upper"]] for one in self.charges["finish"]])
        whole = self.promise["max_em_drop"] / self.part - self.charges["judge"]["charge"]
        self.budgets = [min(0.99, whole - one) for one in finish]  # the drop that a level may have where it acts
        self.delta = self.promise["delta"] * (PARTS.get(self.part, 0) if self.epoch.get("ramps") else self.part == 1)
        claims = [self.tested(unit) for unit in range(4)]
        self.n_clusters = {"conversations": claims[0][0], "prompts": claims[1][0]}
        self.n_clusters["callers"] = len({line["clusters"][2] for line in self.counted if "clusters" in line} - {""})
        if claims[2][0] < (round(16 / max(self.budgets)) if max(self.budgets) > 0 else inf):
            del claims[2]  # too few callers to speak for others
        self.wealth = [min(one) for one in zip(*(each for _, each in claims), strict=True)]  # all of them have to hold
        failed = (level for level, one in enumerate(self.wealth[1:]) if not self.delta * exp(min(700.0, one)) >= 1)
        self.level = next(failed, self.n_levels - 1)  # the last of the unbroken run of levels that pass

    def tested(self, unit: int) -> tuple[int, list[float]]:
        """How many clusters there are by conversation, prompt, caller or audit, and their log wealth by level."""
        clusters, counts = dict[Any, list[Line]](), [Counter[tuple[float, float]]() for _ in self.budgets]
        for line in self.counted:
            clusters.setdefault([*line.get("clusters", [""] * 3), ""][unit] or line["n"], []).append(line)
        for lines in clusters.values():
            each = [(min(1.0, self.least / self.share(line)), self.mean(line)) for line in lines]
            total = sum(weight for weight, _ in each)  # one observation: its mean, and at most one request
            for level, one in enumerate(counts):
                one[min(1.0, total), sum(weight * z[level] for weight, z in each) / total] += 1
        return len(clusters), [log_wealth(one, eps) for one, eps in zip(counts, self.budgets, strict=True)]

    def is_audit(self, line: Line) -> bool:
        """Does this request show what its stop would cost? A retry does not: it shares the draw of the first."""
        return line.get("delivery", 1) == 1 and (line["audit"] or self.share(line) == 1)

    def share(self, line: Line) -> float:
        """P(audit) of a request when it was drawn."""
        is_observed = line.get("mode") == "observe" and self.header["observed_are_audits"]
        return 1.0 if is_observed else line["p"] if line["audit"] else 1 - line["p"]

    def at_levels(self, runs: list[list[Any]]) -> list[Any]:
        """Values by level, of runs of equal values; before the first one stands 0."""
        return [next((value for at, value in reversed(runs) if at <= level), 0) for level in range(self.n_levels)]

    def outcome(self, line: Line) -> list[int]:
        """What an audit has to count as at each level: its label decides, else its disagreement; else it is lost."""
        lost = [0] + [1] * (self.n_levels - 1)
        return self.at_levels(line["z" if "label" in line else "d"]) if line["status"] == "returned" else lost

    def mean(self, line: Line) -> list[float]:
        """The mean of that over the orders that a vote's samples could have had, where these are counted."""
        if line["status"] != "returned" or line.get("orders", 1) == 1:
            return list(self.outcome(line))
        return [total / line["orders"] for total in self.at_levels(line["sum"])]


def log_wealth(counts: dict[Any, int], eps: float) -> float:
    """Log of the mean over bets of the product of 1 + nu w (eps - z), nu = bet / (1 - eps); counts are of (w, z)."""
    if not 0 < eps < 1:
        return -inf
    logs = [sum(n * log1p(bet / (1 - eps) * w * (eps - z)) for (w, z), n in counts.items()) for bet in BETS]
    return max(logs) + log(sum(exp(one - max(logs)) for one in logs) / len(logs))


def check_window(bundle: Bundle) -> Wrong:
    """Every request of the window stands there once, in the order of start, and none was drawn below its share."""
    expected, place = ceil(bundle.window["start"]), 0
    for n, line in ((line["n"], line) for line in bundle.starts):
        if n != expected or line.get("count", 1) < 1:
            yield f"request {n} stands where request {expected} has to: one is missing, repeated or out of order"
        if line["seq"] <= place:
            yield f"request {n} came before the one above it in the log: the order was changed"
        share = line["audit_share"] or 0.0 if line["type"] == "unrecorded" else bundle.share(line)
        if line.get("delivery", 1) == 1 and not bundle.window["share"] - 1e-9 <= share <= 1:
            yield f"request {n} was drawn with probability {share:g}, below the window's share or above 1"
        expected, place = n + line.get("count", 1), line["seq"]
    times = Counter(line["id"] for line in bundle.requests)
    yield from (f"request {name} is listed more than once" for name, n in times.items() if n > 1)
    if expected != ceil(bundle.end):
        yield f"the requests end at {expected - 1}, the window at {ceil(bundle.end) - 1}"


def check_audits(bundle: Bundle) -> Wrong:
    """Each audit counts as what its end, its disagreement and its label say."""
    for line in bundle.audits:
        where, status = f"audit {line['n']}", line["status"]
        if status == "left out":
            yield f"{where} is in the window and was not counted: {line['why']}"
        elif (status == "pending") == ("end_seq" in line):
            yield f"{where} counts as {status}, and the log {'has' if 'end_seq' in line else 'does not have'} its end"
        if status != "returned":
            continue
        z, d = bundle.at_levels(line["z"]), bundle.at_levels(line["d"])
        if z[0] or any(abs(one) > differs for one, differs in zip(z, d, strict=True)):
            yield f"{where}: Z is not 0 where its answer is the full run's"
        if "label" in line:
            yield from (f"{where}: {said}" for said in check_label(bundle, line, z, d))
        elif z != d:
            yield f"{where}: nobody has labelled it, so Z has to be its disagreement"


def check_orders(bundle: Bundle) -> Wrong:
    """Sums over orders of a vote's samples are possible, and audits do not lose more in the order that they had."""
    log_e = [0.0] * bundle.n_levels
    for line in bundle.counted:
        weight = min(1.0, bundle.least / bundle.share(line))
        pairs = list(zip(bundle.outcome(line), bundle.mean(line), strict=True))
        log_e = [one + log1p(weight / 3 * (z - mean)) for one, (z, mean) in zip(log_e, pairs, strict=True)]
        if line["status"] == "returned" and "orders" in line:
            n, where = line["orders"], f"audit {line['n']}"
            others = [total - z for total, (z, _) in zip(bundle.at_levels(line["sum"]), pairs, strict=True)]
            if bundle.header["kind"] != "samples" or n < 2 or others[0] or not all(-n < one < n for one in others):
                yield f"{where}: its sum is none of {n} orders of samples"
            if "label" not in line and min(others) < 0:
                yield f"{where}: nobody has labelled it, so no order of its samples can gain"
    largest = max(log_e[1:])
    average = largest + log(sum(exp(one - largest) for one in log_e[1:]) / len(log_e[1:]))
    if average >= log(1 / bundle.promise["delta"]) and any("orders" in line for line in bundle.counted):
        yield f"audits lose more in their own order of samples than in others (log e-value {average:.1f})"


def check_label(bundle: Bundle, line: Line, z: list[int], d: list[int]) -> Wrong:
    """A label is a row of the audit log about this audit, and Z is not better than it allows."""
    row = bundle.rows.get(line["label"])
    link = next((one["of"] for one in bundle.links if one["of"][1] == line["label"]), None)
    if row is None or link is None:
        yield "its label is no row of the audit log"
        return
    told, said = READ(row["told"]), READ(row["kept"]).get("feedback", {})
    is_about = told[3] == line["id"] or (told[3] is None and said.get("response_id") == line.get("response_id", ""))
    correct, has_reference = said.get("correct"), link[4] is not None  # the reference itself is only digested
    if told[1] != "feedback" or not is_about or (correct is None and not has_reference):
        yield f"row {line['label']} of the log does not say what is right there"
    right = line["right"] if correct is None else correct
    if right and (-1 in z or (not has_reference and z != d)):
        yield "its full run is right by its label, so a stop that answers otherwise loses"
    elif -1 in z and not right and not has_reference:
        yield "no label says that a stop is right where its full run is wrong"


def check_charges(bundle: Bundle) -> Wrong:
    """What is taken off the budget is no less than the counts ask for, and delta is no more than the epoch has."""
    promise, finish, judge, before = bundle.promise, bundle.charges["finish"], bundle.charges["judge"], 0.0
    if promise["delta"] > (1 - promise["confidence"]) * promise["delta_share"] * 1.000001:
        yield f"delta is {promise['delta']:g}, more than 1 - confidence and the epoch's share of it allow"
    if bundle.header["kind"] == "reasoning" and (not finish or finish[0]["from_level"] != 1):
        yield "the finish is not charged from level 1 on"
    for step in finish:
        least, before = max(before, finish_bound(step["n_differing"], step["n"])), step["upper"]
        if before < least - 1e-6:
            yield f"the finish from level {step['from_level']} on is charged {before:.3%}, and {least:.3%} is due"
    error, alone = (refuted(judge[k], judge[n]) for k, n in (("n_wrong", "n_graded"), ("n_alone", "n_audits")))
    if judge["charge"] and judge["charge"] < min(1.0, 2 * error * alone) - 1e-5:
        yield f"the judge's mistakes are charged {judge['charge']:.3%}, and {2 * error * alone:.3%} is due"


def bisected(is_above: Callable[[float], bool]) -> float:
    """The number in (0, 1) from which on a condition holds; 1: from none on."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if middle < 1 and is_above(middle) else (middle, high)
    return high


def finish_bound(k: int, n: int) -> float:
    """Clopper and Pearson's upper bound on the rate behind k of n; above 1 where nothing was compared."""
    if not 0 <= k < min(n, 10**6):
        return 1.0 if 0 < k == n else 2.0
    ways = [lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) for i in range(k + 1)]
    return bisected(lambda p: sum(exp(w + i * log(p) + (n - i) * log1p(-p)) for i, w in enumerate(ways)) < FINISH_RISK)


def refuted(k: int, n: int) -> float:
    """The smallest rate that k of n refute by wealth, at all looks at once."""
    counts = {(1.0, 0): n - k, (1.0, 1): k}
    return bisected(lambda rate: log_wealth(counts, rate) >= log(1 / JUDGE_RISK)) if 0 <= k <= n else 1.0


def check_draws(bundle: Bundle) -> Wrong:
    """The sample-ratio test: were audits drawn as often as their logged shares say? A beta-binomial e-value."""
    draws, log_e = Counter[tuple[float, bool]](), 0.0
    for line in bundle.requests:
        if line.get("delivery", 1) == 1 and line.get("kept_by") != "end" and line["unit"]:
            p, rate = line["p"], line.get("keep_rate", 1.0)  # audits keep their rows for certain, others at this rate
            this, other = (p, (1 - p) * rate) if line["audit"] else (p * rate, 1 - p)
            draws[round((this if line["audit"] else other) / (this + other), 9), line["audit"]] += 1
    for share in {share for share, _ in draws}:
        k, rest = draws[share, True], draws[share, False]
        if 0 < share < 1:
            a, b = 100 * share, 100 * (1 - share)
            mixture = lgamma(a + k) + lgamma(b + rest) - lgamma(100 + k + rest) - lgamma(a) - lgamma(b) + lgamma(100)
            log_e += mixture - k * log(share) - rest * log(1 - share)
        elif k if share == 0 else rest:
            log_e = inf
    if log_e >= log(1_000):
        yield f"audits do not come as often as the logged probabilities say (log e-value {log_e:.1f})"


def redrawn(bundle: Bundle) -> Iterator[tuple[Line, bool]]:
    """First deliveries of days whose salts are published, and whether these make them audits."""
    known, since = bundle.known_salts, max((one["since_s"] for _, one in bundle.salts), default=inf)
    for line in bundle.firsts:
        if line["at"] >= since and (salt := known.get(line["at"] // DAY_S)):
            key = blake2b(salt.encode()).digest()
            drawn = blake2b(line["unit"].encode(), key=key, person=b"audit-lot", digest_size=8).digest()
            yield line, (int.from_bytes(drawn) >> 11) / 2**53 < (line["p"] if line["audit"] else 1 - line["p"])


def check_salts(bundle: Bundle) -> Wrong:
    """Draws come out as logged by the salts of their days, which were bound before and published afterwards."""
    known, latest = bundle.known_salts, 0.0
    for _, one in bundle.salts:
        if (known.get(one["day"]), bundle.salts[0][1]["since_s"]) != (one["salt"], one["since_s"]):
            yield f"the salt of day {one['day']} is not the one that those of later days lead to"
    for line, audit in redrawn(bundle):
        before = [one["day"] for seq, one in bundle.salts if seq < line["seq"]]
        if audit != line["audit"]:
            yield f"request {line['n']} is {'an' if audit else 'no'} audit by the salt of its day, and logged otherwise"
        if not before or max(before) >= line["at"] // DAY_S:
            yield f"request {line['n']} was drawn by a salt that {'was public' if before else 'nothing had bound'}"
    for line in (one for one in bundle.firsts if one.get("kept_by") != "end"):
        if latest - line["at"] > LATE_S and latest // DAY_S != line["at"] // DAY_S:
            yield f"request {line['n']} is said to be of a day before that of requests above it"
        latest = max(latest, line["at"])
    times = Counter(line["unit"] for line in bundle.firsts)
    yield from (f"the draw {unit} is that of {n} requests" for unit, n in times.items() if n > 1)


def check_claim(bundle: Bundle) -> Wrong:
    """The header, and the log's rows of the publication and its epoch, claim what follows from the rows and no more."""
    header, promise, wealth = bundle.header, bundle.promise, bundle.wealth
    if header["certified_level"] != bundle.level:
        yield f"level {header['certified_level']} is claimed to be certified; the rows certify level {bundle.level}"
    pairs = zip(wealth[1:], header["log_wealth"][1:], strict=True)
    if not all(isclose(here, -inf if there is None else there, rel_tol=1e-6, abs_tol=1e-6) for here, there in pairs):
        yield "the log wealth of the levels is not what the rows come to"
    made, epoch = bundle.made, bundle.epoch
    if made["certified"] and made["level"] > bundle.level:
        yield f"level {made['level']} was published as certified; the rows certify level {bundle.level}"
    z, said = Counter(bundle.outcome(line)[made["level"]] for line in bundle.counted), made["evidence"]
    window = {**header["window"], "end": bundle.end} if header["window"] else dict.fromkeys(("start", "end", "share"))
    claims: dict[str, tuple[Any, Any]] = {
        **{name: (header[name], made[name]) for name in ("route", "level", "n_levels", "at", "fit")},
        "epoch": ([header["epoch"], made["epoch"], made["route"]], [*[epoch["number"]] * 2, epoch["route"]]),
        "publication": (header["publication"], made["number"]),
        **{f"promised {name}": (promise[name], epoch[name]) for name in ("max_em_drop", "confidence", "delta_share")},
        "confidence of the test": (1 - promise["delta"], said["confidence"]),
        "budget of the test": (bundle.budgets[max(1, made["level"])] * bundle.part, said["max_em_drop"]),
        "bets": (BETS, header["bets"]),
        "share of the requests": (bundle.part, max(bundle.part, 1 - made["share"])),  # that it is proved for and gets
        "judge's charge": (bundle.charges["judge"]["charge"], said["judge_charge"]),
        **{f"{name} of the window": (window[name], said[f"window_{name}"]) for name in ("start", "end", "share")},
        **{name: (n, said[f"n_{name}"]) for name, n in bundle.n_clusters.items()},
        **{name: (n, said[f"n_{name}"]) for name, n in (("audits", z.total()), ("lost", z[1]), ("gained", z[-1]))},
        "pending audits": (sum(line["status"] == "pending" for line in bundle.audits), said["n_pending"]),
        "log wealth": (min(700.0, wealth[made["level"]]), log(said["e_value"])) if made["level"] else (0, 0),
    }
    for name, (here, there) in claims.items():
        if here != there and not (isinstance(there, float) and here is not None and isclose(here, there, rel_tol=1e-6)):
            yield f"{name}: {here} by the bundle, {there} by the log"


def check_chain(bundle: Bundle) -> Wrong:
    """The rows that matter stand in the audit log's chain, which leads to the head; so does the bundle's own seal."""
    if not bundle.bodies["exported"]["export"]["what"].endswith(f"sealed {bundle.seal}"):
        yield "the lines are not those that were exported: the audit log has another seal"
    link, digests, place = bytes.fromhex(bundle.links[0]["before"]), dict[int, str](), 0
    for line in bundle.links:
        here, seq, *parts = line["of"]
        parted = bytes.fromhex("".join(one or "0" * 64 for one in parts))
        link = sha256(link + pack(">QQB", here, seq, 1) + parted).digest()
        digests[seq], line["link"], place = parts[0], link.hex(), here
    if (place, link.hex()) != (bundle.head["place"], bundle.head["link"]):
        yield "the chain does not lead to the head that the bundle carries"
    for seq, row in bundle.rows.items():
        digest = sha256(f"{row['told']}\n{row['kept']}".encode()).hexdigest()
        if READ(row["told"])[0] != seq or digests.get(seq) != digest:
            yield f"row {seq} of the log is not what the chain vouches for"


def compare_heads(bundle: Bundle, content: str) -> Wrong:
    """Heads that were kept elsewhere are those of this chain. Raises LookupError without the one behind the bundle."""
    places = {line["of"][0]: line["link"] for line in bundle.links}
    kept = [one for one in map(READ, content.splitlines()) if one["place"] in places]
    for one in kept:
        if (one["begin"], one["link"]) != (bundle.head["begin"], places[one["place"]]):
            yield f"the head that was kept of place {one['place']} is another one: the log was written anew"
    if bundle.head["place"] not in {one["place"] for one in kept}:
        raise LookupError("the head behind the bundle was not kept, so nothing vouches for its seal")


def show(*lines: str) -> None:
    """Print lines; what a terminal would obey is replaced, since names in a bundle are somebody else's words."""
    print(*("".join(c if c.isprintable() else "\ufffd" for c in one) for one in lines), sep="\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check what a certificate of Suffice rests on.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--head", type=Path, help="heads of the audit log that were kept elsewhere")
    checks = check_window, check_audits, check_orders, check_charges, check_draws, check_salts, check_claim, check_chain
    options, wrong = parser.parse_args(arguments), list[str]()
    try:
        bundle = Bundle(options.bundle.read_bytes())
        for check in checks:
            wrong += check(bundle)
        if options.head:
            wrong += compare_heads(bundle, options.head.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        show(*(f"WRONG: {one}" for one in wrong), f"cannot be checked: {type(error).__name__}: {error}")
        return 1 if wrong else 2
    header, n, charges = bundle.header, sum(line.get("count", 1) for line in bundle.starts), bundle.charges
    risk = FINISH_RISK * bool(charges["finish"]) + 2 * JUDGE_RISK * bool(charges["judge"]["charge"])
    n_clusters = ", ".join(f"{n:,} {name}" for name, n in bundle.n_clusters.items() if n)
    rows = f"route {header['route']}, publication {header['publication']}: {n:,} requests"
    rows += f", {len(bundle.counted):,} audits of {n_clusters}; level {bundle.level} of {bundle.n_levels - 1} passes"
    holds = f"holds: with confidence {1 - bundle.promise['delta'] - risk:g} these requests would have lost less than"
    holds += f" {bundle.promise['max_em_drop']:.2%} on average at level {header['level']}"
    holds += f" on {bundle.part:.0%} of them; alarms guard later ones"
    draws = f"draws: {sum(1 for _ in redrawn(bundle)):,} of {len(bundle.firsts):,} made again by published salts"
    unknown = "nobody can tell: nothing here contradicts itself, but no head was kept elsewhere (--head), and without"
    unknown += " one whoever owns the log could have written all of it anew"
    found = f"does NOT hold: {len(wrong)} things are wrong" if wrong else holds if options.head else unknown
    show(*(f"WRONG: {one}" for one in wrong), rows, draws, found)
    return 1 if wrong else 0 if options.head else 2


if __name__ == "__main__":
    raise SystemExit(main())
