"""`higgs-native info`: what is built in, and what this machine supports."""


def info() -> None:
    """Show what is built in, what this machine supports, and what will be used."""
    import torch

    from higgs_native import __version__
    from higgs_native._C import build_info, cpu_quota
    from higgs_native.ops.device import checked_device

    device = checked_device("auto")
    build = build_info()
    # As many as the CPU kernels use.
    threads = min(torch.get_num_threads(), cpu_quota("") or torch.get_num_threads())
    cpu = f"cpu, {build['cpu_instruction_set']} kernels, {threads} threads"
    cuda = "none" if not build["cuda"] else f"{build['cuda_version']} for {build['cuda_architectures']}"
    rows = {
        "higgs_native": __version__,
        "built against torch": build["torch_built_against"],
        "built by": build["compiler"],
        "CPU kernels built in": ", ".join(build["cpu_instruction_sets"]),
        "CUDA kernels built in": cuda,
        "torch": torch.__version__,
        "this CPU runs": ", ".join(build["cpu_instruction_sets_supported"]),
        "this CPU has": build["cpu_features"],
        "GPUs": torch.cuda.device_count() or "none",
        "will be used": cpu if device.type == "cpu" else f"{device}, {torch.cuda.get_device_name(device)}",
    }
    for name, value in rows.items():
        print(f"{name + ':':<23}{value}")
