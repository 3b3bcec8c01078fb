# SPDX-License-Identifier: Apache-2.0
"""One of two processes of test_encode: each has half the rows and sees all of them."""

import sys

import jax

if __name__ == "__main__":
    address, process = sys.argv[1], int(sys.argv[2])
    jax.distributed.initialize(address, 2, process)

    import numpy as np
    import test_encode as case
    from jax.sharding import AxisType, Mesh

    from fmfa_jax.evaluation import encode_split, match_ranks

    devices = np.asarray(jax.devices())
    mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
    for where in (mesh, None):
        rows = {"process": process, "processes": 2}
        found = encode_split(
            case.encode_image,
            case.encode_text,
            case.batches("image", case.ROWS, **rows),
            case.batches("text", case.QUERIES, **rows),
            mesh=where,
        )
        case.check(found)
    features = found.text, found.image
    persons = found.text_person, found.image_person
    shared = match_ranks(*features, *persons, gallery_block=4, mesh=mesh)
    alone = match_ranks(*features, *persons, gallery_block=4)
    np.testing.assert_array_equal(shared.ranks, alone.ranks)
