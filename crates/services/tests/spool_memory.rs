//! Receiving content needs little memory, whatever its size. The test has a process to itself, because it measures the memory of the
//! process.

use std::fs;

use bytes::Bytes;
use services::Spool;

#[tokio::test]
async fn memory_stays_bounded() {
    const MIB: usize = 1024 * 1024;
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    };
    let directory = tempfile::tempdir().unwrap();
    let spool = Spool::new(directory.path()).unwrap();
    let chunk = Bytes::from(vec![7; MIB]);
    let (before, mut most) = (resident(), 0);
    let mut upload = spool.begin(u64::MAX);
    for _ in 0..64 {
        upload.write(chunk.clone()).await.unwrap();
        most = most.max(resident().saturating_sub(before));
    }
    assert_eq!(upload.finish().await.unwrap().size, 64 * MIB as u64);
    assert!(most < 4 * MIB, "{} KiB", most / 1024);
    // The control: the measurement detects content held in memory.
    let held = vec![7_u8; 64 * MIB];
    assert!(resident().saturating_sub(before) > 48 * MIB, "{}", held.len());
}
