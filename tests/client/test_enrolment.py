"""`init`: a folder that can be run after one telephone call, and that nothing overwrites."""

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from certificates import authority
from medsynth_client.check_command import check_folder
from medsynth_client.credentials import SIGNING_KEY
from medsynth_client.enrolment import Enrolled, enrol
from medsynth_client.node_key import NODE_KEY, load_node_key, public_line
from medsynth_client.site_file import SiteFile
from medsynth_common.dataset.finding import Level
from medsynth_common.errors import BadConfig, BadData
from medsynth_common.identity import SigningKey
from medsynth_common.identity.cards import CoordinatorCard, SiteCard, read_card
from small_patients import write_patient

COORDINATOR = SigningKey.generate().public


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven patients; a folder's name may hold what TOML would stumble over."""
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("p1", "p2", "p3", "p4", "p5", "p6", 'p "7" ü\\')):
        write_patient(root / name, seed=seed)
    return root


@pytest.fixture
def card(tmp_path: Path) -> Path:
    path = tmp_path / "coordinator.card"
    made = CoordinatorCard(
        federation="brains",
        address="coordinator.example:8443",
        signing_key=COORDINATOR.text,
        ca=authority().pem,
    )
    made.write(path)
    return path


def made(tmp_path: Path, card: Path, data: Path, declared: int | None = None) -> Enrolled:
    return enrol(tmp_path / "site", name="site-a", card=card, data=data, declared=declared)


def test_a_site_is_made_and_can_be_read(tmp_path: Path, card: Path, data: Path) -> None:
    enrolled = made(tmp_path, card, data)
    folder = enrolled.folder
    site = SiteFile.load(folder / "site.toml")
    assert site.name == "site-a"
    assert site.coordinator_key == COORDINATOR.text
    assert len(site.source.names()) == 7
    assert site.declared_patients == 5  # not 7: the count is private
    assert (site.policy.epsilon_cap, site.policy.allow_unprotected) == (8.0, False)
    assert site.policy.synthetic_may_leave is False
    found, _ = check_folder(folder, layout=None, settings=None, fix=None)
    assert found.of(Level.ERROR) == []

    own = read_card(folder / "site.card", SiteCard)
    assert own.signing_key == SigningKey.load(folder / SIGNING_KEY).public.text
    key = load_node_key(folder / NODE_KEY)
    assert isinstance(key.curve, ec.SECP384R1)
    assert own.node_key == public_line(key)
    assert (folder / NODE_KEY).read_bytes().startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")


def test_secrets_are_the_owner_s_alone_and_on_no_card(
    tmp_path: Path, card: Path, data: Path
) -> None:
    folder = made(tmp_path, card, data).folder
    for path in (folder / SIGNING_KEY, folder / NODE_KEY, folder / "site.toml"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in (folder, folder / "keys"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert "PRIVATE" not in (folder / "site.card").read_text()
    assert set(json.loads((folder / "site.card").read_text())) == set(SiteCard.model_fields)


def test_both_fingerprints_are_shown(tmp_path: Path, card: Path, data: Path) -> None:
    enrolled = made(tmp_path, card, data)
    theirs = read_card(card, CoordinatorCard).fingerprint
    assert enrolled.site.fingerprint in enrolled.text()
    assert theirs in enrolled.text()
    facts = json.loads(json.dumps(enrolled.facts()))
    assert facts["coordinator_fingerprint"] == theirs
    assert facts["site_fingerprint"] == enrolled.site.fingerprint


def test_nothing_is_overwritten_and_every_problem_is_told(
    tmp_path: Path, card: Path, data: Path
) -> None:
    folder = made(tmp_path, card, data).folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(BadConfig) as caught:
        enrol(folder, name="site a!", card=card, data=data, declared=8)
    assert [problem.name for problem in caught.value.problems] == [
        str(folder),
        "--name",
        "--declared-patients",
    ]
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_failure_leaves_nothing(tmp_path: Path, card: Path, data: Path) -> None:
    card.write_text("{}")
    with pytest.raises(BadConfig):
        made(tmp_path, card, data)
    (tmp_path / "empty").mkdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coordinator.card", "empty"]


def test_without_patients_there_is_no_site(tmp_path: Path, card: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(BadData):
        made(tmp_path, card, tmp_path / "data")
    with pytest.raises(BadData, match="no such folder"):
        made(tmp_path, card, tmp_path / "nowhere")


def test_too_few_to_be_rounded_must_be_declared(tmp_path: Path, card: Path) -> None:
    write_patient(tmp_path / "data" / "only")
    with pytest.raises(BadConfig, match="say it yourself"):
        made(tmp_path, card, tmp_path / "data")
    assert made(tmp_path, card, tmp_path / "data", declared=1).declared == 1


def test_check_tells_every_problem_at_once(tmp_path: Path, card: Path) -> None:
    data = tmp_path / "data"
    for seed, name in enumerate(("p1", "p2", "p3")):
        write_patient(data / name, seed=seed)
    folder = made(tmp_path, card, data, declared=3).folder
    (data / "p1" / "p1_t1.nii.gz").unlink()
    (data / "p2" / "p2_t2.nii.gz").write_bytes(b"no volume")
    found, _ = check_folder(folder, layout=None, settings=None, fix=None)
    names = {finding.problem.name for finding in found.of(Level.ERROR)}
    assert any("p1: t1" in name for name in names)
    assert any("p2: t2" in name for name in names)
    assert not any("p3" in name for name in names)
    (data / "p3").rename(data / "p4")
    with pytest.raises(BadData, match="p3: got no such patient"):
        check_folder(folder, layout=None, settings=None, fix=None)
    file = folder / "site.toml"
    file.write_text(file.read_text().replace("declared_patients = 3", "declared_patients = 4"))
    with pytest.raises(BadConfig, match="declared_patients: got 4, wanted at most 3"):
        check_folder(folder, layout=None, settings=None, fix=None)


@pytest.mark.parametrize("content", [b"", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"])
def test_a_node_key_that_is_none_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(BadConfig, match="no OpenSSH key"):
        load_node_key(path)
    path.chmod(0o644)
    with pytest.raises(BadConfig, match="chmod 600"):
        load_node_key(path)
