from deit_jax.aot.parts import Exchange, Part, StepCost
from deit_jax.aot.printed_schedule import show_schedule
from deit_jax.aot.topologies import H100, V5E


def printed(cost, chip, capsys):
    """What is printed of a step of 4 images per device, in one line."""
    report = {
        "schedule": cost.as_json(chip.clock),
        "batch_per_device": 4,
        "flops_per_image": {"student": 197e9, "teacher": 0},
        "roofline": {"bound": 4e-3},
    }
    show_schedule(report, chip)
    return " ".join(capsys.readouterr().out.replace("\u2502", " ").split())


def test_cycles_by_part(capsys):
    parts = [
        Part("attention core", True, 9e6, 80e6, None),
        Part("attention core", False, 3e6, 20e6, None),
        Part("optimizer and EMA", False, 4e6, 4e6, None),
        Part("prefetches to the chip", False, 0, 16e6, None),
    ]
    exchanges = [Exchange("all-reduce", 100_000_000, 0.75, 0.125), Exchange("all-gather", 200_000, 0.5, 0)]
    kernels = {"attend.1": 4000.0, "attend.12": 4000.0, "other.1": None}
    text = printed(StepCost(parts, exchanges, kernels, ["jit(f)/while"]), V5E, capsys)
    assert "attention core 750.0 2,250.0 75.0 5.0 20.0" in text
    assert "optimizer and EMA 1,000.0 0.0 25.0 1.0 0.0" in text
    assert "sum 1,750.0 2,250.0 100.0 10.0 20.0" in text
    assert "10.67 ms: 16.0 million cycles at 1.5 GHz; the roofline's 4.00 ms are 38 % of it" in text
    assert "375 images/s per device, 38 % of peak FLOP/s" in text
    assert "2 x attend: 1,000 cycles per image" in text
    assert "1 x other: schedule not known, counted as 0 cycles" in text
    assert "jit(f)/while: counted once" in text
    assert (
        "all-reduce: 100.0 MB sent, 0.50 ms at the peak rate; 25.0 % of the step's cycles follow it, 12.5 % overlap"
        in text
    )
    assert text.index("all-reduce:") < text.index("all-gather:")


def test_without_cycles_flops_are_printed(capsys):
    parts = [Part("dense layers: MLP", True, None, 8e6, 16e9), Part("norms", False, None, 4e6, 0.0)]
    exchanges = [Exchange("all-reduce", 450_000_000, 0, 0)] * 8
    text = printed(StepCost(parts, exchanges, {}, []), H100, capsys)
    assert "dense layers: MLP 0.0 4.0 100.0 0.0 2.0" in text and "sum 0.0 4.0 100.0 1.0 2.0" in text
    assert "GFLOP, forward" in text and "cycle" not in text
    assert "all-reduce: 450.0 MB sent, 1.00 ms at the peak rate" in text and "and 2 smaller ones" in text
