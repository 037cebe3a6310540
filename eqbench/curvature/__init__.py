"""Curvature of the loss: Hessian-vector products, eigenvalues, traces; an estimator a file."""
