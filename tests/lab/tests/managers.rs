//! Several managers on whole hosts. One swarm for all tests here; they run one after another.

use std::collections::BTreeSet;
use std::io::{Write as _, stderr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use swarm_lab::load::{Clients, Load};
use swarm_lab::services::registry;
use swarm_lab::swarm::{MANAGER_PORT, SETTLE_DEADLINE, TaskRow};
use swarm_lab::{Host, Output, Swarm, wait_until};

const PORT: u16 = 8080;

/// Longest time without an acknowledged write when the leader dies. On real machines it is an election,
/// 1 to 2 s, and what it takes to notice; here everything else is emulated, a write through `swarmctl` too.
const NO_LEADER_MAX: Duration = Duration::from_secs(15);

/// Three managers, and service `web` with three tasks.
fn swarm() -> MutexGuard<'static, Swarm> {
    static SWARM: OnceLock<Mutex<Swarm>> = OnceLock::new();
    let swarm = SWARM.get_or_init(|| {
        let swarm = Swarm::of_managers().expect("a swarm");
        swarm
            .create_web("web", 3, &["-p", "8080:80"])
            .expect("service web");
        Mutex::new(swarm)
    });
    let swarm = swarm.lock().unwrap_or_else(PoisonError::into_inner);
    swarm.wait_ready().expect("every node ready");
    swarm.wait_managers().expect("three managers");
    swarm.wait_running("web", 3).expect("three tasks");
    swarm
}

/// What the test measures is of interest also where it passes.
fn tell(text: &str) {
    writeln!(stderr(), "{text}").ok();
}

/// The first host but `not`.
fn another<'a>(swarm: &'a Swarm, not: &Host) -> &'a Host {
    let mut hosts = swarm.lab.hosts().iter();
    hosts
        .find(|host| host.name() != not.name())
        .expect("another host")
}

/// Clients of every host.
fn load(swarm: &Swarm) -> Load {
    let hosts = swarm.lab.hosts().iter();
    let clients = Clients {
        at: hosts.map(|host| (host.address(), PORT).into()).collect(),
        short: 2,
        keepalive: 3,
        download: 0,
        limit_ms: 5000,
    };
    Load::start(swarm.lab.client(), &clients).expect("clients")
}

fn nothing_failed(load: Load) {
    let counts = load.finish().expect("the clients' counts");
    assert_eq!(counts.failed, 0, "{counts:#?}");
}

/// Asks `host` for a service without tasks.
fn create(host: &Host, name: &str) -> Result<String> {
    create_with(host, name, &[])
}

/// The same with more options.
fn create_with(host: &Host, name: &str, options: &[&str]) -> Result<String> {
    let image = format!("{}/web:latest", registry());
    let create = ["service", "create", "-d", "--replicas", "0", "--name", name];
    let create = [&create[..], options, &[&image]].concat();
    host.swarmctl(&create)?.success()
}

/// Waits until every manager knows of all services `names`, then removes them.
fn found_everywhere(swarm: &Swarm, names: &[String]) {
    for host in swarm.lab.hosts() {
        let list = host.swarmctl(&["service", "ls", "--format", "json"]);
        let list = list.and_then(Output::success).expect("the services");
        for name in names {
            let is_there = list.contains(&format!(r#""Name":"{name}""#));
            assert!(is_there, "{} does not know {name}:\n{list}", host.name());
        }
    }
    let remove = ["service", "rm"].into_iter();
    let remove: Vec<_> = remove.chain(names.iter().map(String::as_str)).collect();
    swarm.swarmctl(&remove).expect("services that go");
}

#[test]
fn a_command_works_on_any_manager_and_leaders_are_demoted_one_after_another() {
    let swarm = swarm();
    let names: Vec<_> = (swarm.lab.hosts().iter())
        .map(|host| format!("of-{}", host.name()))
        .collect();
    for (host, name) in swarm.lab.hosts().iter().zip(&names) {
        create(host, name).unwrap();
    }
    found_everywhere(&swarm, &names);
    // Each hands over to another one, which has just begun to lead when it is to demote.
    for _ in 0..2 {
        let leader = swarm.wait_managers().unwrap();
        let other = another(&swarm, leader);
        let set = |verb| {
            let begun = Instant::now();
            let set = other.swarmctl(&["node", verb, leader.name()]).unwrap();
            set.success().unwrap();
            tell(&format!("node {verb} of the leader: {:?}", begun.elapsed()));
        };
        set("demote");
        let nodes = swarm.nodes(other).unwrap();
        let demoted = nodes.iter().find(|node| node.hostname == leader.name());
        assert_eq!(demoted.unwrap().manager_status, "", "{nodes:#?}");
        set("promote");
    }
    swarm.wait_managers().unwrap();
}

/// Services that are created at a host, one after another, without a pause.
struct Stream {
    stop: Arc<AtomicBool>,
    /// Those that were acknowledged, and when.
    made: Arc<Mutex<Vec<(String, Instant)>>>,
    thread: Option<JoinHandle<()>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream {
    fn start(host: &Host) -> Self {
        let (host, stop) = (host.clone(), Arc::new(AtomicBool::new(false)));
        let made = Arc::new(Mutex::new(Vec::new()));
        let (asked, kept) = (Arc::clone(&stop), Arc::clone(&made));
        let thread = thread::spawn(move || {
            for number in 0.. {
                let name = format!("s-{number}");
                if asked.load(Ordering::Relaxed) {
                    break;
                }
                // What is refused was made or not: only what was acknowledged is promised.
                if create(&host, &name).is_ok() {
                    locked(&kept).push((name, Instant::now()));
                }
            }
        });
        Self {
            stop,
            made,
            thread: Some(thread),
        }
    }

    /// Waits until `count` more were acknowledged.
    fn wait(&self, count: usize) {
        let before = locked(&self.made).len();
        wait_until(SETTLE_DEADLINE, "services are created", || {
            let now = locked(&self.made).len();
            ensure!(now >= before + count, "{now} after {before}");
            Ok(())
        })
        .expect("more services");
    }

    /// Ends it; gives the names, and the longest time between two of them.
    fn finish(mut self) -> (Vec<String>, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the stream ends");
        }
        let made = locked(&self.made);
        let longest = made.windows(2).map(|two| two[1].1 - two[0].1).max();
        let names = made.iter().map(|(name, _)| name.clone());
        (names.collect(), longest.expect("several services"))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_acknowledged_service_outlives_its_leader() {
    let swarm = swarm();
    let leader = swarm.wait_managers().unwrap();
    let stream = Stream::start(another(&swarm, leader));
    stream.wait(4);
    leader.agent().kill_with_control().unwrap();
    stream.wait(4);
    leader.agent().start().unwrap();
    let (names, longest) = stream.finish();
    tell(&format!(
        "{} services; without an acknowledgement for {longest:?} when the leader was killed",
        names.len()
    ));
    assert!(longest < NO_LEADER_MAX, "{longest:?}");
    swarm.wait_managers().unwrap();
    found_everywhere(&swarm, &names);
}

/// Nothing of managers comes in on `host` any more from other hosts, and nothing gets out to theirs.
fn cut_off(host: &Host) {
    let rules = "add table inet cut; \
                 add chain inet cut in { type filter hook input priority -400; }; \
                 add rule inet cut in iifname != lo tcp dport 2377 drop; \
                 add rule inet cut in iifname != lo tcp sport 2377 drop";
    let cut = host.exec(&["nft", rules]).and_then(Output::success);
    cut.expect("nothing comes in");
}

fn heal(host: &Host) {
    let healed = host.exec(&["nft", "delete table inet cut"]);
    healed.and_then(Output::success).expect("all comes in");
}

/// Waits until `host` refuses a service with all of `words`.
fn refuses(host: &Host, words: &[&str]) {
    wait_until(SETTLE_DEADLINE, "the manager says what is wrong", || {
        let image = format!("{}/web:latest", registry());
        let create = ["service", "create", "-d", "--replicas", "0"];
        let create = [&create[..], &["--name", "refused", &image]].concat();
        let text = host.swarmctl(&create)?.failure()?;
        let missing = words.iter().find(|word| !text.contains(**word));
        ensure!(missing.is_none(), "nothing of {missing:?}: {text}");
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{}: {error:#}", host.name()));
}

/// What a leader without a majority has refused may be made all the same when it has one again.
fn forget_refused(swarm: &Swarm) {
    let remove = swarm.manager().swarmctl(&["service", "rm", "refused"]);
    remove.expect("swarmctl runs");
}

/// Lets `web` have a task on every host again, where an earlier test has moved them together.
fn spread(swarm: &Swarm) {
    let hosts = || swarm.hosts_of("web").expect("the hosts of tasks").len();
    if hosts() < 3 {
        let update = ["swarmctl", "service", "update", "--force", "web"];
        let updated = swarm.manager().exec_within(SETTLE_DEADLINE * 2, &update);
        updated.and_then(Output::success).expect("new tasks");
    }
    assert_eq!(hosts(), 3);
}

fn ids(tasks: &[TaskRow]) -> BTreeSet<String> {
    tasks.iter().map(|task| task.id.clone()).collect()
}

#[test]
fn without_a_majority_everything_runs_on_and_the_error_says_who_is_missing() {
    let swarm = swarm();
    let before = ids(&swarm.wait_running("web", 3).unwrap());
    let load = load(&swarm);
    let [first, second, third] = swarm.lab.hosts() else {
        panic!("three hosts are needed");
    };
    for host in [second, third] {
        cut_off(host);
    }
    for host in swarm.lab.hosts() {
        let others = swarm.lab.hosts().iter();
        let others = others.filter(|other| other.name() != host.name());
        let others: Vec<_> = others
            .map(|other| format!("{} ({}:{MANAGER_PORT})", other.name(), other.address()))
            .collect();
        let said = "2 of its 3 managers are needed and 1 can be reached";
        refuses(host, &[said, &others[0], &others[1]]);
        swarm.wait_answers(host, PORT, 3).unwrap();
    }
    for host in [second, third] {
        heal(host);
    }
    swarm.wait_managers().unwrap();
    swarm.wait_ready().unwrap();
    create(first, "healed").unwrap();
    forget_refused(&swarm);
    found_everywhere(&swarm, &["healed".to_owned()]);
    let after = ids(&swarm.wait_running("web", 3).unwrap());
    assert_eq!(before, after, "no task was replaced");
    nothing_failed(load);
}

#[test]
fn one_manager_goes_on_alone_with_everything_and_others_join() {
    let swarm = swarm();
    spread(&swarm);
    let tasks = swarm.wait_running("web", 3).unwrap();
    let [first, second, third] = swarm.lab.hosts() else {
        panic!("three hosts are needed");
    };
    let lost = [second, third];
    create(third, "kept").unwrap();
    let token = swarm.worker_token().unwrap();
    for host in lost {
        host.set_link(false).unwrap();
        host.agent().kill_with_control().unwrap();
    }
    refuses(first, &["--force-new-cluster"]);
    let forced = first.swarmctl(&["swarm", "init", "--force-new-cluster"]);
    forced.unwrap().success().unwrap();
    assert_eq!(swarm.worker_token().unwrap(), token);
    forget_refused(&swarm);
    // Its own tasks run on, those of the others are replaced.
    wait_until(SETTLE_DEADLINE * 2, "three tasks on the first host", || {
        let tasks = swarm.tasks("web")?;
        let here = |it: &&TaskRow| it.is_running() && it.node == first.name();
        let here = tasks.iter().filter(here).count();
        ensure!(here == 3, "{here} run there: {tasks:#?}");
        Ok(())
    })
    .unwrap();
    let own = tasks.into_iter().filter(|task| task.node == first.name());
    let own = ids(&own.collect::<Vec<_>>());
    let now = ids(&swarm.wait_running("web", 3).unwrap());
    assert!(!own.is_empty() && own.is_subset(&now), "{own:?} {now:?}");
    swarm.wait_answers(first, PORT, 3).unwrap();
    for host in lost {
        let remove = ["node", "rm", "--force", host.name()];
        swarm.swarmctl(&remove).unwrap();
        host.replace().unwrap();
        host.agent().start().unwrap();
        swarm.join(host, "manager").unwrap();
    }
    swarm.wait_managers().unwrap();
    found_everywhere(&swarm, &["kept".to_owned()]);
}

#[test]
fn a_manager_whose_disk_was_lost_joins_again() {
    let swarm = swarm();
    let leader = swarm.wait_managers().unwrap();
    // Neither the leader nor the host that the test asks.
    let mut others = swarm.lab.hosts()[1..].iter();
    let wiped = others.find(|host| host.name() != leader.name()).unwrap();
    let nodes = swarm.nodes(swarm.manager()).unwrap();
    let old = nodes.iter().find(|node| node.hostname == wiped.name());
    let old = old.unwrap().node_id().to_owned();
    wiped.agent().kill_with_control().unwrap();
    std::fs::remove_dir_all(wiped.agent().state_dir()).unwrap();
    wiped.agent().start().unwrap();
    let status = wiped.swarmctl(&["swarm", "status"]).unwrap();
    let status = status.success().unwrap();
    assert!(status.contains("inactive"), "{status}");
    create(swarm.manager(), "meanwhile").unwrap();
    // It does not come back: the others can do without it.
    swarm.swarmctl(&["node", "demote", &old]).unwrap();
    swarm.swarmctl(&["node", "rm", "--force", &old]).unwrap();
    swarm.join(wiped, "manager").unwrap();
    swarm.wait_managers().unwrap();
    found_everywhere(&swarm, &["meanwhile".to_owned()]);
    swarm.wait_running("web", 3).unwrap();
    // What ran there under its old name does not run any more.
    wait_until(SETTLE_DEADLINE, "no container of another node", || {
        let namespace = wiped.agent().containerd_namespace();
        let list = wiped.exec(&["ctr", "-n", &namespace, "tasks", "ls", "-q"])?;
        let list = list.success()?;
        let tasks = swarm.tasks("web")?;
        let here = |it: &&TaskRow| it.is_running() && it.node == wiped.name();
        let here = tasks.iter().filter(here).count();
        ensure!(list.lines().count() == here, "{here} should run: {list}");
        Ok(())
    })
    .unwrap();
}

/// Waits until every manager keeps its certificate's key sealed, or in the clear.
fn kept_sealed(swarm: &Swarm, is_sealed: bool) {
    for host in swarm.lab.hosts() {
        let path = host.agent().state_dir().join("control/tls/manager.pem");
        wait_until(SETTLE_DEADLINE, "the keys on disk", || {
            let pem = std::fs::read(&path)?;
            let is_clear = pem.windows(11).any(|words| words == b"PRIVATE KEY");
            ensure!(is_clear != is_sealed, "{} is not yet", path.display());
            Ok(())
        })
        .expect("what the lock wants");
    }
}

#[test]
fn a_locked_manager_says_so_and_nothing_stops_until_it_is_unlocked() {
    let swarm = swarm();
    let before = ids(&swarm.wait_running("web", 3).unwrap());
    let locked = swarm.wait_managers().unwrap();
    let other = another(&swarm, locked);
    let load = load(&swarm);
    let update = |autolock: &str| {
        let update = ["swarm", "update", autolock];
        let updated = other.swarmctl(&update).unwrap();
        updated.success().unwrap()
    };
    update("--autolock=true");
    let key = other.swarmctl(&["swarm", "unlock-key", "-q"]).unwrap();
    let key = key.success().unwrap().trim().to_owned();
    kept_sealed(&swarm, true);
    locked.agent().restart().unwrap();
    wait_until(SETTLE_DEADLINE, "the status of a locked manager", || {
        let status = locked.swarmctl(&["swarm", "status"])?.success()?;
        let is_told =
            status.contains("Manager: locked") && status.contains("`swarmctl swarm unlock`");
        // Another manager has its agent.
        ensure!(is_told && status.contains("Connected: yes"), "{status}");
        Ok(())
    })
    .unwrap();
    refuses(
        locked,
        &["this manager is locked", "`swarmctl swarm unlock`"],
    );
    create(other, "unlocked").unwrap();
    swarm.wait_answers(locked, PORT, 3).unwrap();
    let unlock = format!("echo {key} | swarmctl swarm unlock");
    let unlocked = locked.exec(&["sh", "-c", &unlock]).unwrap();
    unlocked.success().unwrap();
    swarm.wait_managers().unwrap();
    let status = locked.swarmctl(&["swarm", "status"]).unwrap();
    let status = status.success().unwrap();
    assert!(status.contains("Manager: running"), "{status}");
    update("--autolock=false");
    kept_sealed(&swarm, false);
    found_everywhere(&swarm, &["unlocked".to_owned()]);
    assert_eq!(before, ids(&swarm.wait_running("web", 3).unwrap()));
    nothing_failed(load);
}

/// How often a session has ended, by the agents' logs, other than for another leader: where emulation
/// starves a leader the others choose another one, and sessions follow it.
fn sessions_ended(swarm: &Swarm) -> usize {
    let logs = swarm.lab.hosts().iter().map(|host| host.agent().log());
    let texts = logs.map(|log| std::fs::read_to_string(log).expect("a log"));
    let is_it = |line: &&str| line.contains("session ended") && !line.contains(" lead");
    texts.map(|text| text.lines().filter(is_it).count()).sum()
}

#[test]
fn another_root_ends_no_session_and_no_request() {
    let swarm = swarm();
    let before = ids(&swarm.wait_running("web", 3).unwrap());
    let root = swarm.swarmctl(&["swarm", "ca"]).unwrap();
    let load = load(&swarm);
    let ended = sessions_ended(&swarm);
    let rotate = ["swarmctl", "swarm", "ca", "--rotate"];
    let begun = Instant::now();
    let rotated = swarm.manager().exec_within(SETTLE_DEADLINE * 2, &rotate);
    rotated.unwrap().success().unwrap();
    tell(&format!("swarm ca --rotate: {:?}", begun.elapsed()));
    assert_ne!(swarm.swarmctl(&["swarm", "ca"]).unwrap(), root);
    assert_eq!(sessions_ended(&swarm), ended);
    nothing_failed(load);
    assert_eq!(before, ids(&swarm.wait_running("web", 3).unwrap()));
}

/// The lab's clock, which all its hosts share, set ahead (or back) for as long as this lives.
struct ClockSet<'a> {
    host: &'a Host,
    by_s: i64,
}

impl<'a> ClockSet<'a> {
    fn by(host: &'a Host, by_s: i64) -> Self {
        set_clock(host, by_s);
        Self { host, by_s }
    }
}

impl Drop for ClockSet<'_> {
    fn drop(&mut self) {
        set_clock(self.host, -self.by_s);
    }
}

fn set_clock(host: &Host, by_s: i64) {
    let script = format!("date --set=@$(($(date +%s) + {by_s}))");
    let set = host.exec(&["sh", "-c", &script]);
    set.and_then(Output::success).expect("a clock that is set");
}

#[test]
fn clocks_that_jump_hold_nothing_up_and_replace_nothing() {
    const JUMP_S: i64 = 3 * 3600;
    let swarm = swarm();
    let before = ids(&swarm.wait_running("web", 3).unwrap());
    let load = load(&swarm);
    let works = |name: &str| {
        swarm.create_web(name, 1, &[]).unwrap();
        swarm.wait_running(name, 1).unwrap();
        let scale = format!("{name}=2");
        swarm.swarmctl(&["service", "scale", "-d", &scale]).unwrap();
        let first = ids(&swarm.wait_running(name, 2).unwrap());
        let update = ["swarmctl", "service", "update", "--force", name];
        let updated = swarm.manager().exec_within(SETTLE_DEADLINE * 2, &update);
        updated.and_then(Output::success).expect("new tasks");
        let second = ids(&swarm.wait_running(name, 2).unwrap());
        assert!(first.is_disjoint(&second), "{first:?}, {second:?}");
        swarm.swarmctl(&["service", "rm", name]).unwrap();
    };
    {
        let _ahead = ClockSet::by(swarm.lab.host(1), JUMP_S);
        works("ahead");
        swarm.wait_ready().unwrap();
    }
    // What was written down then is in the future now.
    works("back");
    swarm.wait_ready().unwrap();
    let after = ids(&swarm.wait_running("web", 3).unwrap());
    assert_eq!(before, after, "no task was replaced");
    nothing_failed(load);
}

/// Runs a shell script in the directory of a host's manager.
fn at_control_dir(host: &Host, script: &str) {
    let dir = host.agent().state_dir().join("control");
    let script = format!("set -e; cd {}; {script}", dir.display());
    let run = host.exec(&["sh", "-c", &script]);
    run.and_then(Output::success).expect("the script");
}

#[test]
fn a_manager_without_room_on_its_disk_ends_says_why_and_comes_back() {
    let swarm = swarm();
    let full = swarm.wait_managers().unwrap();
    let other = another(&swarm, full);
    // A small disk of its own for the manager, who leads.
    full.agent().stop().unwrap();
    at_control_dir(
        full,
        "cp -a . ../control.kept; cd ..; mount -t tmpfs -o size=32m,mode=700 tmpfs control; \
         cp -a control.kept/. control; rm -r control.kept",
    );
    full.agent().start().unwrap();
    swarm.wait_managers().unwrap();
    at_control_dir(full, "cat /dev/zero > filler || true");
    let (mut names, mut tries) = (Vec::new(), 0);
    let padding = format!("padding={}", "x".repeat(30_000));
    wait_until(
        SETTLE_DEADLINE * 2,
        "a manager that says why it ends",
        || {
            tries += 1;
            let name = format!("big-{tries}");
            create_with(other, &name, &["--env", &padding])?;
            names.push(name);
            let status = full.swarmctl(&["swarm", "status"])?.success()?;
            ensure!(status.contains("No space left on device"), "{status}");
            Ok(())
        },
    )
    .unwrap();
    // The others go on without it.
    create(other, "without").unwrap();
    names.push("without".to_owned());
    swarm.wait_answers(full, PORT, 3).unwrap();
    at_control_dir(full, "rm filler");
    swarm.wait_managers().unwrap();
    found_everywhere(&swarm, &names);
    full.agent().stop().unwrap();
    at_control_dir(
        full,
        "cp -a . ../control.kept; cd ..; umount -l control; cp -a control.kept/. control; rm -r control.kept",
    );
    full.agent().start().unwrap();
}
