"""Prints the report of a step compiled ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deit_jax import console
from deit_jax.aot import printed_schedule
from deit_jax.aot.printed_schedule import show_schedule
from deit_jax.aot.topologies import Topology

_GIB = 2**30

ASSUMPTIONS = (
    "compute: model FLOPs at the published bfloat16 peak, without augmentation, optimizer and recomputation",
    "memory: bytes of main memory read and written, {estimate}, at the published bandwidth",
    "links: a ring over all links of a device at their published rate. Loop bodies count once; other traffic does not count",
    "the step takes as long as the longest of the three, as if they overlapped completely",
)
# By report["bytes_accessed_from"].
ESTIMATES = {
    "compiler": "as estimated by the compiler (loop bodies count once, data that stays on the chip counts too)",
    "text": "counted in the compiled program, with padding and with the turns of its loops",
}
LIMITATIONS = (
    "step time: nothing is run, and real steps take longer than the roofline's",
    "whether the hosts decode images fast enough",
    "memory used outside this program: the prefetched batch, evaluation, the runtime, fragmentation",
    "whether the results are correct on that hardware",
)
GPU_LIMITATION = (
    "the autotuned program of a real GPU: this one is compiled without autotuning and Triton, memory is an estimate"
)


def show(report: Mapping[str, Any], topology: Topology) -> None:
    """Prints a report of `deit_jax.modes.compile`, made for `topology`."""
    facts = {
        "devices": f"{report['devices']} x {report['chip']} on {report['hosts']} host(s), mesh "
        + ", ".join(f"{axis}={size}" for axis, size in report["mesh"].items()),
        "model": f"{report['model']}, {report['parameters']:,} parameters, {report['image_size']} px, {report['compute_dtype']}",
        **({"attention": "{name}: {why}".format(**report["attention"])} if report.get("attention") else {}),
        "teacher": report["teacher"] or "none",
        **({"features": report["features"]} if "features" in report else {}),
        "batch": f"{report['batch_size']}, {report['batch_per_device']} per device",
    }
    dealt = "each host deals its own rows" if report["dealt_on"] == "hosts" else "the devices exchange rows"
    facts["mixing"] = "groups of {group_size}, {groups_per_block} per block; ".format(**report["mixing"]) + dealt
    student, teacher = report["flops_per_image"]["student"], report["flops_per_image"]["teacher"]
    facts["model FLOPs"] = (
        f"{(student + teacher) / 1e9:.1f} G per image: student {student / 1e9:.1f} G (forward and backward), teacher "
        f"{teacher / 1e9:.1f} G (forward)"
    )
    if "compile_seconds" in report:
        facts["compiled in"] = f"{report['compile_seconds']:.0f} s, after {report['lower_seconds']:.0f} s of tracing"
    console.announce(f"The train step on {report['topology']}", facts)
    memory = dict(report["memory"])
    total, capacity = memory.pop("total"), memory.pop("capacity")
    amounts = {kind: f"{size / _GIB:8.3f}" for kind, size in memory.items()}
    needs = "more" if total is None else f"{total / _GIB:.2f} GiB"
    if "refusal" in report:  # the compiler stops at the first kind of memory that does not fit
        needs = f"at least {needs}"
    verdict = "fits" if report["fits"] else "does not fit"
    amounts["total"] = f"{verdict}: needs {needs} of {capacity / _GIB:.2f} GiB ({topology.chip.memory_note})"
    console.announce("Memory per device, GiB", amounts)
    if "roofline" not in report:
        console.say(f"compiler: {report['refusal']}")
        return
    console.announce("Collectives", _exchanges(report))
    roof = report["roofline"]
    times = {
        name: "not known" if roof[name] is None else f"{roof[name] * 1e3:8.2f} ms"
        for name in ("compute", "memory", "links")
    }
    times["memory"] += f" ({report['bytes_accessed'] / report['batch_per_device'] / 1e6:,.0f} MB per image)"
    flops = (student + teacher) * report["batch_per_device"] / topology.chip.peak_flops
    times["a step"] = (
        f"{roof['bound'] * 1e3:8.2f} ms at least, by {roof['limit']}: at most {report['images_per_second_bound']:,.0f} images/s "
        f"and {100 * flops / roof['bound']:.0f} % of peak FLOP/s; without overlap {roof['in_turn'] * 1e3:.2f} ms"
    )
    console.announce("Roofline: time of a step at peak rates", times)
    limitations = LIMITATIONS + ((GPU_LIMITATION,) if topology.platform == "cuda" else ())
    if report["schedule"] is not None:
        show_schedule(report, topology.chip)
        limitations += (
            printed_schedule.LIMITATIONS if topology.platform == "tpu" else (printed_schedule.GPU_LIMITATION,)
        )
    estimate = ESTIMATES[report["bytes_accessed_from"]]
    console.announce("Assumptions", {str(i): text.format(estimate=estimate) for i, text in enumerate(ASSUMPTIONS, 1)})
    console.announce("Not known from compiling", {str(i): text for i, text in enumerate(limitations, 1)})


def _exchanges(report: Mapping[str, Any]) -> dict[str, str]:
    if report["collectives"] is None:
        return {"not known": f"jaxlib cannot read the program written by this compiler ({report['unreadable']})"}
    exchanges = {
        kind: f"{row['count']}, results {row['bytes'] / 1e6:.1f} MB, {row['sent'] / 1e6:.1f} MB sent per device"
        + (f" ({row['in_loops']} in loops, counted once)" if row["in_loops"] else "")
        for kind, row in report["collectives"].items()
    }
    return exchanges or {"none": "the devices exchange nothing"}
