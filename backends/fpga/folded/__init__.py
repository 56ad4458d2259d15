"""The time-multiplexed engine: layers one after another on the same multipliers, weights in block memory."""
