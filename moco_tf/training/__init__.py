"""What training needs besides the method: ranks, device, optimizers, schedules, checkpoints, metrics."""
