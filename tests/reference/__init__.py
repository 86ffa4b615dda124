"""Networks written out from their papers' arithmetic, without fused operations: what the fast ones are held against."""
