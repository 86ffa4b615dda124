import shutil
import tarfile
from dataclasses import replace

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from monai.data import ITKReader
from scripts.dicom import CaseError, index_files, read_volume, split_volumes
from scripts.prepare.output import write_nifti_pair
from scripts.prepare.phantom_dicom import Coding, Geometry, write_ct_series
from support import REAL_DATA

STRAIGHT = Geometry((-60.5, -81.25, -333.5), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (2.5, 3.0), 4.0)
TILTED = replace(STRAIGHT, row_cosine=(0.0, 1.0, 0.0), column_cosine=(-0.6, 0.0, 0.8))
CODINGS = [Coding(True, -1024, False), Coding(True, 0, True), Coding(False, -1024, True)]


def write(folder, geometry=STRAIGHT, coding=CODINGS[0], image=None, **options):
    if image is None:
        image = np.random.default_rng(0).integers(-1000, 1500, (12, 9, 6)).astype(np.int16)  # (columns, rows, slices)
    names = {"patient_id": "HCC_001", "study": "s", "series": "a", "number": 1, "description": "CT", "date": "19991130"}
    write_ct_series(folder, image, geometry, coding=coding, rng=np.random.default_rng(1), **(names | options))
    return image


def read(folder):
    index = index_files(folder.glob("*"))
    (headers,) = index.series.values()
    return read_volume(split_volumes(headers)[0])


def edit(path, **values):
    item = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(item, name, value)
    item.save_as(path)


def by_height(folder):
    return sorted(folder.glob("*.dcm"), key=lambda p: pydicom.dcmread(p).ImagePositionPatient[2])


def as_itk_reads(folder):
    """Image (columns, rows, slices) and RAS affine, read by ITK's series reader through MONAI."""
    array, meta = (reader := ITKReader()).get_data(reader.read(str(folder)))
    return array, np.asarray(meta["affine"])


@pytest.mark.parametrize("geometry", [STRAIGHT, TILTED], ids=["straight", "tilted"])
@pytest.mark.parametrize("coding", CODINGS, ids=["signed", "signed from the head", "unsigned from the head"])
def test_series_has_the_values_and_the_geometry_that_itk_reads(tmp_path, geometry, coding):
    image = write(tmp_path / "series", geometry, coding)
    volume = read(tmp_path / "series")
    np.testing.assert_array_equal(volume.array, image)
    np.testing.assert_allclose(volume.affine, geometry.affine(), atol=1e-5)
    array, affine = as_itk_reads(tmp_path / "series")
    np.testing.assert_array_equal(array, image)
    np.testing.assert_allclose(affine, volume.affine, atol=1e-4)
    assert volume.spacing == pytest.approx((2.5, 3.0, 4.0), abs=1e-5)
    assert volume.voxel_ml == pytest.approx(0.03)


def test_real_ct_has_the_values_and_the_geometry_that_itk_reads(tmp_path):
    archive = REAL_DATA / "liver_ct" / "HCC048_portal_venous.tar.xz"
    if not archive.is_file():
        pytest.skip(f"the real CT is not at {archive} (REAL_DATA_DIR)")
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    volume = read(tmp_path / "HCC048_portal_venous")
    array, affine = as_itk_reads(tmp_path / "HCC048_portal_venous")
    assert volume.array.shape == (512, 512, 89)
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-3)
    assert volume.spacing == pytest.approx((0.703125, 0.703125, 2.5), abs=1e-4)
    write_nifti_pair(tmp_path, "x", volume.array[:, :, :20], np.zeros((512, 512, 20), np.uint8), volume.affine)
    image = itk.imread(str(tmp_path / "imagesTr" / "x.nii.gz"))
    np.testing.assert_allclose(np.asarray(image.GetOrigin()), volume.lps[:3, 3], atol=1e-3)
    assert nib.aff2axcodes(nib.load(tmp_path / "imagesTr" / "x.nii.gz").affine) == ("L", "P", "S")


def test_rescale_slope_is_applied_and_rounded_to_whole_hu(tmp_path):
    image = write(tmp_path / "series")
    for path in (tmp_path / "series").glob("*"):
        edit(path, RescaleSlope="0.5", RescaleIntercept="-1000")
    expected = np.rint((image + 1024.0) * 0.5 - 1000)
    np.testing.assert_array_equal(read(tmp_path / "series").array, expected.astype(np.int16))


def test_gap_is_refused_with_its_place(tmp_path):
    write(tmp_path / "series")
    lost = by_height(tmp_path / "series")[3]
    lost.unlink()
    with pytest.raises(CaseError, match=r"8\.000 mm between positions -325\.50 and -317\.50.*about 1 missing"):
        read(tmp_path / "series")


def test_slice_between_the_others_is_refused(tmp_path):
    write(tmp_path / "series")
    path = by_height(tmp_path / "series")[2]
    edit(path, ImagePositionPatient=[-60.5, -81.25, -333.5 + 4.7])
    with pytest.raises(CaseError, match="nearly the same place"):
        read(tmp_path / "series")


def test_gantry_tilt_is_refused(tmp_path):
    write(tmp_path / "series")
    for k, path in enumerate(by_height(tmp_path / "series")):
        edit(path, ImagePositionPatient=[-60.5, -81.25 + k, -333.5 + 4 * k])
    with pytest.raises(CaseError, match="sideways by 1.000 mm"):
        read(tmp_path / "series")


def test_slices_of_different_size_are_refused(tmp_path):
    write(tmp_path / "series")
    edit(by_height(tmp_path / "series")[2], Rows=8)
    with pytest.raises(CaseError, match=r"has size \(8, 12\)|has size \(9, 12\)"):
        read(tmp_path / "series")


def test_one_slice_is_no_volume(tmp_path):
    write(tmp_path / "series", image=np.zeros((4, 4, 1), np.int16))
    with pytest.raises(CaseError, match="one slice only"):
        read(tmp_path / "series")


def test_pixels_cut_off_are_reported_with_the_file(tmp_path):
    write(tmp_path / "series")
    path = by_height(tmp_path / "series")[2]
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CaseError, match=f"{path.name} cannot be read .* download it again"):
        read(tmp_path / "series")


def test_header_cut_off_and_other_files_are_told_apart(tmp_path):
    write(tmp_path / "series")
    files = by_height(tmp_path / "series")
    for path, size in zip(files, (600, 200, 100, 0), strict=False):
        path.write_bytes(path.read_bytes()[:size])
    (tmp_path / "series" / "LICENSE").write_text("CC BY 4.0")
    index = index_files((tmp_path / "series").glob("*"))
    assert {path for path, _ in index.unreadable} == set(files[:4])
    assert [len(headers) for headers in index.series.values()] == [2]


def test_localizer_is_not_a_slice(tmp_path):
    image = write(tmp_path / "series")
    write(tmp_path / "scout", image=image[:, :, :1], acquisition=9)
    scout = next((tmp_path / "scout").glob("*"))
    edit(scout, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    shutil.move(scout, tmp_path / "series")
    np.testing.assert_array_equal(read(tmp_path / "series").array, image)


@pytest.mark.parametrize("numbered", [True, False], ids=["acquisition numbers", "instance numbers only"])
def test_phases_in_one_series_are_told_apart(tmp_path, numbered):
    first = write(tmp_path / "series", acquisition=1)
    second = write(tmp_path / "series", acquisition=2, image=first + 7)
    if not numbered:
        for path in (tmp_path / "series").glob("*"):
            edit(path, AcquisitionNumber="1")
    (headers,) = index_files((tmp_path / "series").glob("*")).series.values()
    volumes = [read_volume(group).array for group in split_volumes(headers)]
    assert len(volumes) == 2
    np.testing.assert_array_equal(volumes[0], first)
    np.testing.assert_array_equal(volumes[1], second)


def test_volume_in_several_acquisitions_and_repeated_files_is_one(tmp_path):
    image = write(tmp_path / "series")
    for path in by_height(tmp_path / "series")[3:]:
        edit(path, AcquisitionNumber="2")
    shutil.copy(by_height(tmp_path / "series")[1], tmp_path / "series" / "copy.dcm")
    np.testing.assert_array_equal(read(tmp_path / "series").array, image)
