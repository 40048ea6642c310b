"""What orders the frames of a cine, what a frame shows, and what is no film at all."""
import gzip
import io

import nibabel as nib
import numpy as np
import pydicom
import pytest
from makers import enhanced, image, moving, nifti, packed, saved, scan, ukb_zip
from pydicom.dataset import Dataset

from ptacl.core.errors import PtaclError
from ptacl.data.dicom import read_cine
from ptacl.data.prepare import prepare_cine


def written(tmp_path, content, name="x.zip"):
    (tmp_path / name).write_bytes(content)
    return tmp_path / name


def stack(cine, tags, **options):
    "A zip of single images without a trigger time; tags(f, z) are what each has instead."
    F, Z = cine.shape[:2]
    shuffled = np.random.default_rng(3).permutation(list(np.ndindex(F, Z))).tolist()
    return packed([(f"{k:03d}", image(cine[f, z], "sa", ImagePositionPatient=[0, 0, 10 * z], **options | tags(f, z)))
                   for k, (f, z) in enumerate(shuffled)])


def beating(F=20, Z=3, size=64):
    "(F, Z, H, W): a bright disc that is largest in frame 0."
    y, x = np.mgrid[:size, :size] - size / 2
    inner = 13 - 5 * np.sin(np.pi * np.arange(F) / F)[:, None, None, None] - np.arange(Z)[:, None, None]
    return (100 + 700 * (np.hypot(x, y) < inner) + 2 * (x + size)).astype(np.uint16)


# the order of frames

NUMBERS = np.random.default_rng(1).permutation(60) + 1  # of images, in an order that means nothing


@pytest.mark.parametrize("source, tags", [
    ("TriggerTime", lambda f: dict(TriggerTime=40 * f, TemporalPositionIdentifier=9 - f, AcquisitionTime=f"10000{9 - f}")),
    ("TemporalPosition", lambda f: dict(TemporalPositionIdentifier=f + 1, AcquisitionTime=f"10000{9 - f}")),
    ("TemporalPosition", lambda f: dict(TriggerTime=0, TemporalPositionIdentifier=f + 1)),
    ("NominalPercentageOfCardiacPhase", lambda f: dict(NominalPercentageOfCardiacPhase=10. * f, ContentTime=f"10000{9 - f}")),
    ("AcquisitionTime", lambda f: dict(AcquisitionTime=f"100000.{4 * f:02d}", ContentTime=f"10000{9 - f}")),
    ("AcquisitionTime", lambda f: dict(AcquisitionTime=f"235959.{80 + 4 * f:02d}" if f < 5 else f"000000.{4 * f - 20:02d}")),
    ("ContentTime", lambda f: dict(ContentTime=f"100000.{4 * f:02d}", AcquisitionTime="100000")),
])
def test_the_first_source_that_tells_the_time(tmp_path, source, tags):
    cine = beating(10, 3)
    read = read_cine(written(tmp_path, stack(cine, lambda f, z: tags(f) | dict(InstanceNumber=int(NUMBERS[10 * z + f])))))
    np.testing.assert_array_equal(read.frames, cine)
    assert read.meta["frames_by"] == source and read.meta["warnings"] == ()
    assert read.meta["frame_interval_s"] == (pytest.approx(0.04) if source in ("TriggerTime", "AcquisitionTime") else None)


def test_a_missing_frame_is_found_by_any_source(tmp_path):
    cine = moving(10, 3)
    F, Z = cine.shape[:2]
    files = [(f"{f}{z}", image(cine[f, z], "sa", ImagePositionPatient=[0, 0, 10 * z], TemporalPositionIdentifier=f + 1, InstanceNumber=1))
             for f in range(F) for z in range(Z) if (f, z) != (4, 1)]
    read = read_cine(written(tmp_path, packed(files)))
    assert read.meta["missing_frames"] == ((1, 4),)
    np.testing.assert_array_equal(read.frames[5:], cine[5:])


def test_numbers_alone_come_with_a_warning(tmp_path):
    cine = beating()
    content = stack(cine, lambda f, z: dict(InstanceNumber=20 * z + f + 1))
    read = read_cine(written(tmp_path, content))
    np.testing.assert_array_equal(read.frames, cine)
    assert "tell no time" in read.meta["warnings"][0] and "InstanceNumber" in read.meta["warnings"][0]
    assert prepare_cine(tmp_path / "x.zip")[2]["warnings"] == read.meta["warnings"]  # part of the provenance
    with pytest.raises(PtaclError, match="order of its frames is unknown"):
        read_cine(written(tmp_path, stack(cine, lambda f, z: dict(InstanceNumber=1))))


def test_two_films_in_one(tmp_path):
    cine = moving(6, 2)
    twice = stack(np.concatenate([cine, cine[::-1]]), lambda f, z: dict(TriggerTime=40 * (f % 6), InstanceNumber=f))
    with pytest.raises(PtaclError, match="slice 1 has several images with the same TriggerTime: two films in one"):
        read_cine(written(tmp_path, twice))


def functional(cine, group, keyword, value, scale=None, shared_scale=None):
    "An enhanced file, its trigger delays replaced by another element of a functional group."
    ds = pydicom.dcmread(io.BytesIO(enhanced(cine)))
    for item in ds.PerFrameFunctionalGroupsSequence:
        f = round(item.CardiacSynchronizationSequence[0].NominalCardiacTriggerDelayTime / 20)
        del item.CardiacSynchronizationSequence
        if group:
            content = Dataset()
            setattr(content, keyword, value(f))
            setattr(item, group, [content])
        if scale: item.PixelValueTransformationSequence = [transformation(*scale(f))]
    if shared_scale: ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence = [transformation(*shared_scale)]
    return ds


def transformation(slope, intercept):
    item = Dataset()
    item.RescaleSlope, item.RescaleIntercept, item.RescaleType = slope, intercept, "US"
    return item


@pytest.mark.parametrize("group, keyword, value", [
    ("FrameContentSequence", "TemporalPositionIndex", lambda f: f + 1),
    ("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase", lambda f: 14. * f),
    ("FrameContentSequence", "FrameAcquisitionDateTime", lambda f: f"20260101100000.{4 * f:02d}"),
])
def test_functional_groups_order_frames(tmp_path, group, keyword, value):
    cine = moving(7, 3, 4, 4)
    read = read_cine(written(tmp_path, saved(functional(cine, group, keyword, value)), "x.dcm"))
    np.testing.assert_array_equal(read.frames, cine)
    assert read.meta["warnings"] == ()


def test_dimensions_order_frames(tmp_path):
    cine = moving(7, 3, 4, 4)
    ds = functional(cine, "FrameContentSequence", "DimensionIndexValues", lambda f: [1, f + 1])
    pointers = [Dataset(), Dataset()]
    pointers[0].DimensionIndexPointer, pointers[1].DimensionIndexPointer = 0x00209057, 0x00209153  # place in the stack, trigger delay
    ds.DimensionIndexSequence = pointers
    read = read_cine(written(tmp_path, saved(ds), "x.dcm"))
    np.testing.assert_array_equal(read.frames, cine)
    assert read.meta["frames_by"] == "DimensionIndexValues"


def test_frames_in_the_order_of_the_file_come_with_a_warning(tmp_path):
    read = read_cine(written(tmp_path, saved(functional(moving(7, 3, 4, 4), None, None, None)), "x.dcm"))
    assert "the order of the frames in the file" in read.meta["warnings"][0]


def test_frame_times_of_a_vector(tmp_path):
    cine = moving(8, 1)
    files = [("x", image(cine[:, 0], "sa", NumberOfFrames=8, FrameTimeVector=[0] + [45] * 7, ImagePositionPatient=[0, 0, 0]))]
    read = read_cine(written(tmp_path, packed(files)))
    assert read.meta["frames_by"] == "FrameTime" and read.meta["frame_interval_s"] == pytest.approx(0.045)


# the values of frames

def test_each_frame_of_an_enhanced_file_has_its_own_scale(tmp_path):
    cine = moving(7, 3, 4, 4)
    own = functional(cine, "FrameContentSequence", "TemporalPositionIndex", lambda f: f, scale=lambda f: (1 + f / 2, -f))
    f = np.arange(7)[:, None, None, None]
    np.testing.assert_allclose(read_cine(written(tmp_path, saved(own), "x.dcm")).frames, cine * (1 + f / 2) - f)
    shared = functional(cine, "FrameContentSequence", "TemporalPositionIndex", lambda f: f, shared_scale=(3, 1))
    np.testing.assert_allclose(read_cine(written(tmp_path, saved(shared), "x.dcm")).frames, cine * 3. + 1)


@pytest.mark.parametrize("magnitude, phase", [("M", "P"), ("M_FFE", "P_FFE"), ("MAGNITUDE", "PHASE MAP"), ("", "R"), ("M", "I")])
def test_magnitude_and_phase_are_told_apart(tmp_path, magnitude, phase):
    cine, noise = beating(), moving(20, 3, 64, 64)
    both = np.stack([cine, noise], 1).reshape(40, 3, 64, 64)
    def tags(f, z): return dict(TriggerTime=40 * (f // 2), InstanceNumber=f, ImageType=["ORIGINAL", "PRIMARY", (magnitude, phase)[f % 2]])
    read = read_cine(written(tmp_path, stack(both, tags)))
    np.testing.assert_array_equal(read.frames, cine)
    assert sum(read.meta["images_left_out"].values()) == 60


def test_phase_alone_is_refused(tmp_path):
    content = stack(moving(), lambda f, z: dict(TriggerTime=40 * f, ImageType=["ORIGINAL", "PRIMARY", "P"]))
    with pytest.raises(PtaclError, match="only phase images.*magnitude"): read_cine(written(tmp_path, content))


# what is no film

@pytest.mark.parametrize("step", [0.5, 1.0, 1.5])
def test_a_pile_of_thin_slices(tmp_path, step):
    ds = functional(moving(12, 1), None, None, None)
    for z, item in enumerate(ds.PerFrameFunctionalGroupsSequence): item.PlanePositionSequence[0].ImagePositionPatient = [0, 0, step * z]
    with pytest.raises(PtaclError, match="no cine"): read_cine(written(tmp_path, saved(ds), "x.dcm"))


def test_slices_under_the_name_of_one(tmp_path):
    cine = moving(12, 1)
    files = [("CINE_segmented_SAX_b1", image(cine[f, 0], ImagePositionPatient=[0, 0, 8 * f], InstanceNumber=f)) for f in range(12)]
    with pytest.raises(PtaclError, match="88 mm apart: slices without an axis of time"): read_cine(written(tmp_path, ukb_zip(files)))


@pytest.mark.parametrize("keyword", ["EchoTime", "InversionTime", "FlipAngle"])
def test_a_map(tmp_path, keyword):
    content = stack(moving(), lambda f, z: dict(AcquisitionTime=f"10000{f}", InstanceNumber=f) | {keyword: 10 + f})
    with pytest.raises(PtaclError, match=f"differ in {keyword}: no film, but a map"): read_cine(written(tmp_path, content))


def test_without_preamble(tmp_path):
    cine = moving(5, 3)
    bare = [(name, data[132:]) for name, data in scan(cine, "sa")]
    read = read_cine(written(tmp_path, packed([(f"{k}", d) for k, (_, d) in enumerate(bare)])))
    np.testing.assert_array_equal(read.frames, cine)
    folder = tmp_path / "study"
    folder.mkdir()
    for k, (_, data) in enumerate(bare): (folder / f"IM{k}").write_bytes(data)
    (folder / "notes.txt").write_text("no image")
    np.testing.assert_array_equal(read_cine(folder).frames, cine)
    np.testing.assert_array_equal(read_cine(written(tmp_path, enhanced(cine)[132:], "x.dcm")).frames, cine)


@pytest.mark.parametrize("tags, why", [
    (lambda f: dict(HighBit=15), "pixels of 12 bits end at bit 15"),                                   # they lie to the left
    (lambda f: dict(TriggerTime=120, AcquisitionTime=f"1000{f:02d}"), r"acquired 1 s apart, so in a heartbeat each")])  # perfusion
def test_what_looks_like_a_film_and_is_none(tmp_path, tags, why):
    cine = beating(10, 3)
    images = stack(cine, lambda f, z: dict(TriggerTime=40 * f, BitsStored=12, HighBit=11) | tags(f))
    with pytest.raises(PtaclError, match=why): read_cine(written(tmp_path, images))


@pytest.mark.parametrize("time, said", [(lambda f: 40 * f, ()), (lambda f: 0.04 * f, "0.0004 s"), (lambda f: 600 * f, "6 s")])
def test_times_of_no_heartbeat_are_said(tmp_path, time, said):
    read = read_cine(written(tmp_path, stack(beating(10, 3), lambda f, z: dict(TriggerTime=time(f)))))
    np.testing.assert_array_equal(read.frames, beating(10, 3))
    if said: assert f"by TriggerTime its frames span {said}, which no heartbeat lasts" in read.meta["warnings"][0]
    else: assert read.meta["warnings"] == ()


# NIfTI

def nii(tmp_path, array, zooms):
    picture = nib.Nifti1Image(array, np.eye(4))
    picture.header.set_zooms(zooms[:array.ndim])
    nib.save(picture, tmp_path / "sa.nii.gz")
    return tmp_path / "sa.nii.gz"


def test_time_in_another_axis(tmp_path):
    cine = beating() + np.array([0, 40, 90], np.uint16)[:, None, None]
    a = cine.transpose(3, 2, 1, 0).astype(np.int16)  # x, y, z, t
    np.testing.assert_array_equal(read_cine(nii(tmp_path, a, (1.8, 1.8, 8, .04))).frames, cine)
    with pytest.raises(PtaclError, match=r"one moment of 20 slices.*third axis the time\?.*\(x, y, 1, t\)"):
        read_cine(nii(tmp_path, a[:, :, 1], (1.8, 1.8, 1)))
    with pytest.raises(PtaclError, match=r"3 moments of 20 slices.*\(x, y, t, z\)\?"):
        read_cine(nii(tmp_path, a.transpose(0, 1, 3, 2), (1.8, 1.8, 8, 1)))
    with pytest.raises(PtaclError, match="5 axes"): read_cine(nii(tmp_path, a[:, :, :, None], (1.8, 1.8, 8, 1, 1)))


@pytest.mark.parametrize("axes, zooms", [((2, 0, 1, 3), (8, 1.8, 1.8, .04)), ((0, 2, 1, 3), (1.8, 8, 1.8, .04)),
                                         ((3, 0, 1, 2), (1.8, 1.8, 8, .04))], ids=["zxyt", "xzyt", "txyz"])
def test_slices_or_time_in_an_axis_of_pictures(tmp_path, axes, zooms):
    film = np.random.default_rng(0).integers(0, 99, (48, 48, 9, 20)).astype(np.int16)  # x, y, z, t
    assert read_cine(nii(tmp_path, film, (1.8, 1.8, 8, .04))).frames.shape == (20, 9, 48, 48)
    with pytest.raises(PtaclError, match="in another order"): read_cine(nii(tmp_path, film.transpose(axes), zooms))


@pytest.mark.parametrize("shape", [(1, 9, 16, 16), (9, 16, 16), (1, 1, 16, 16)])
def test_one_moment_is_no_film(tmp_path, shape):
    file = tmp_path / "sa_ED.nii"
    file.write_bytes(nifti(np.ones(shape, np.int16)))
    with pytest.raises(PtaclError, match="Give the file with all moments") as e: read_cine(file)
    assert "end-diastole" in str(e.value)
    assert read_cine(file, still=True).frames.shape == (1, *shape[-3:])


def test_a_name_that_says_another_packing(tmp_path):
    for name, data, right in (("a.nii.gz", nifti(beating()), ".nii"), ("a.nii", gzip.compress(nifti(beating()), 1), ".nii.gz")):
        with pytest.raises(PtaclError, match=rf"against its name. Rename it to {right}\."): read_cine(written(tmp_path, name=name, content=data))


# where a film begins

@pytest.mark.parametrize("shift, said", [(0, False), (1, False), (-1, False), (10, True), (-8, True), (-6, True)])
def test_a_film_that_begins_elsewhere_is_said_to(tmp_path, shift, said):
    cine = np.roll(beating(), shift, axis=0)
    for file in (written(tmp_path, ukb_zip(scan(cine))), written(tmp_path, nifti(cine), "sa.nii")):
        warnings = read_cine(file).meta["warnings"]
        assert bool(warnings) == said and (not said or f"frame {shift % 20} of 20 the most" in warnings[0])
