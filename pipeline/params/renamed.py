"""Keys of params.yaml that had another name in an earlier version."""

__all__ = ["RENAMED"]

RENAMED = {
    "data.on_broken": "data.on_error (refuse is raise now)",
    "corrupt.operator.keep": "corrupt.operator.keep_prob",
    "corrupt.operator.delta": "corrupt.operator.further_mask_prob",
    "network.patch": "network.patch_size",
    "network.width": "network.model_channels",
    "pretrain.noise.sampler": "pretrain.noise.distribution",
    "pretrain.warmup_kimg": "pretrain.lr_warmup_kimg",
    "pretrain.schedule": "pretrain.lr_schedule",
    "pretrain.ema_rampup": "pretrain.ema_rampup_ratio",
    "distill.pixel_range": "distill.clamp_output (clamped is true, free is false)",
    "distill.noise.max_index": "distill.noise.t_max",
    "distill.fake_noise.sampler": "distill.fake_noise.distribution",
    "distill.warmup_kimg": "distill.lr_warmup_kimg",
    "distill.schedule": "distill.lr_schedule",
    "distill.fake_steps": "distill.fake_updates_per_step",
    "distill.ema_rampup": "distill.ema_rampup_ratio",
    "distill.selection.keep": "distill.selection.save_top_k",
    "compute.batch_per_device": "compute.micro_batch_size",
    "compute.eval_batch_size": "run.eval_batch_size",
    "compute.checkpoint_minutes": "run.checkpoint_minutes",
    "compute.strikes": "run.max_nonfinite_retries (one less: the first attempt is no retry)",
}
"""The new name of each, and in parentheses how to write its value now."""
