"""The CPU speed layer: oneDNN products and a fused decode step, all off with `model.cpu_kernels=false`.

`linear_products` has the products of linear layers (`use_onednn`) and of log-probs (`onednn_product`); `fused_decode`
has the decode step of the embedded engine. The generic path gives the same results up to rounding.
"""
