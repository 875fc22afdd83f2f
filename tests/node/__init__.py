"""The pure node: packets in, "write this, then send that" out."""
