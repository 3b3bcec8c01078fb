# SPDX-License-Identifier: Apache-2.0
"""Devices and hosts: the mesh, the processes, how a run ends, and FLOPs."""
